"""Reads YAML files and KEY VALUE pairs into the configuration, with one clear line for each mistake.

YAML is loaded safely and never executed; `_BASE_` inherits from other files (fvcore's `CfgNode`).
"""

from __future__ import annotations

import ast
import logging
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import yaml
from fvcore.common.config import CfgNode as CN

from mfm_core.config.absent import ABSENT
from mfm_core.config.defaults import get_cfg
from mfm_core.config.tables import CHOICES, NULLABLE, WHOLE_LISTS, WORDS
from mfm_core.errors import UserError
from mfm_core.paths import is_remote, local_path
from mfm_core.registry import suggest

logger = logging.getLogger(__name__)


def load_config(path: str | None, overrides: Sequence[str] = ()) -> CN:
    """Defaults, then the file at `path`, then `overrides` (KEY VALUE KEY VALUE …); frozen.

    Raises UserError, naming file and key, for an unreadable file, an unknown key or a value of the wrong type.
    """
    cfg = get_cfg()
    known = dict(flatten(cfg))
    if path is not None:
        for key, value in flatten(_read_yaml(path)):
            set_key(cfg, known, key, value, where=f"{path}: ")
    if len(overrides) % 2:
        raise UserError(f"'{overrides[-1]}' has no value: overrides come in pairs, KEY VALUE KEY VALUE.")
    for key, value in zip(overrides[::2], overrides[1::2]):
        set_key(cfg, known, key, value, where="command line: ")
    cfg.freeze()
    return cfg


def stored_config(text: str) -> CN:
    """The configuration that a run has left as YAML; keys that are newer are at their defaults, older ones left out."""
    cfg = get_cfg()
    known = dict(flatten(cfg))
    for key, value in flatten(yaml.safe_load(text)):
        if key in known:
            section, _, name = key.rpartition(".")
            (value_of(cfg, section) if section else cfg)[name] = tuple(value) if type(known[key]) is tuple else value
    return cfg


def flatten(tree: dict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every leaf."""
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict):
            yield from flatten(value, f"{key}.")
        else:
            yield key, value


def value_of(cfg: CN, key: str) -> Any:
    """The value at a dotted key."""
    for name in key.split("."):
        cfg = cfg[name]
    return cfg


def set_key(cfg: CN, known: dict[str, Any], key: str, value: Any, where: str) -> None:
    """Checks `value` against the default of `key` and stores it; `where` opens the error messages.

    A key of PySlowFast's that does not exist here may have its default there: it asks for nothing.
    """
    if key in ABSENT:
        _refuse_absent(key, value, where)
        return
    if key not in known:
        sections = {k.split(".")[0] for k in known if "." in k}
        if key in sections:
            raise UserError(f"{where}{key} is a section and needs keys below it.")
        raise UserError(f"{where}there is no key {key}.{suggest(key, known)}")
    node = cfg
    *parents, leaf = key.split(".")
    for name in parents:
        node = node[name]
    value = coerce(key, value, known[key], where)
    if key in CHOICES and value not in CHOICES[key]:
        raise UserError(f"{where}{key} is '{value}'; it can be {', '.join(repr(c) for c in CHOICES[key])}.")
    node[leaf] = value


def _refuse_absent(key: str, value: Any, where: str) -> None:
    default, instead = ABSENT[key]
    value = _literal(value)
    if value is None:
        value = ""
    if (list(value) if isinstance(value, tuple) else value) != default:
        raise UserError(f"{where}PySlowFast's {key} does not exist here: {instead}.")


def coerce(key: str, value: Any, default: Any, where: str = "") -> Any:
    """`value`, perhaps a string from the command line or YAML's `1e-6`, as the type of `key`. Raises UserError."""
    wanted = NULLABLE.get(key, type(default))
    if wanted is str:
        if value in (None, "None"):
            return ""
        if isinstance(value, str):
            return value
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return str(value)
    else:
        value = _words(value) if key in WORDS else _literal(value)
        if value is None and key in NULLABLE:
            return None
        if wanted is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{where}{key} takes a finite number, not {value}.")
        if wanted in (list, tuple) and isinstance(value, (list, tuple)):
            _check_elements(key, value, default, where)
            return wanted(value)
    if isinstance(value, wanted) and not (wanted is int and isinstance(value, bool)):
        return value
    or_none = " or None" if key in NULLABLE else ""
    raise UserError(f"{where}{key} takes {_NAMES[wanted]}{or_none}, not {value!r}.")


_NAMES = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "a string",
    list: "a list such as [1, 2]",
    tuple: "a list such as [1, 2]",
}


def _words(value: Any) -> Any:
    """A list of words as the command line gives it: one, one,two or ['one', 'two']."""
    if not isinstance(value, str):
        return value
    words = (word.strip(" '\"") for word in value.strip("[( )]").split(","))
    return [word for word in words if word]


def _literal(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return {"true": True, "false": False, "null": None}.get(value.lower(), value)


def _check_elements(key: str, value: Sequence, default: Any, where: str) -> None:
    """A list takes what its default holds; an empty or missing default says nothing but that it holds numbers."""
    if key in WORDS:
        unknown = [word for word in value if word not in WORDS[key]]
        if unknown:
            known = ", ".join(WORDS[key])
            raise UserError(f"{where}{key} takes a list of some of {known}, not {unknown[0]!r}.")
        return
    kinds = {int} if key in WHOLE_LISTS else {type(d) for d in default or ()} or {float, list, tuple}
    allowed = (*kinds, int) if float in kinds else tuple(kinds)
    if not all(isinstance(v, allowed) and not isinstance(v, bool) for v in value):
        what = "numbers" if float in kinds else "whole numbers"
        raise UserError(f"{where}{key} takes a list of {what}, not {list(value)!r}.")


class _Files(CN):
    """Reads configurations and their `_BASE_` from where `mfm_core.paths` finds them."""

    @classmethod
    def _open_cfg(cls, filename: str) -> IO[str]:
        """fvcore puts the folder of the file in front of an address it does not know as one."""
        address = re.search(r"[A-Za-z0-9+.-]+://.*", filename)
        path = local_path(address[0] if address else filename, "--cfg")
        with open(path, encoding="utf-8") as file:
            _look_for_repeats(yaml.compose(file, Loader=yaml.SafeLoader), where=f"{filename}: ")
        return open(path, encoding="utf-8")


def _look_for_repeats(node: yaml.Node | None, where: str, prefix: str = "") -> None:
    """Of what stands twice in a file YAML drops the first without a word: a section is refused, a key is warned of.

    Some of PySlowFast's files have keys twice; there, too, the last counts.
    """
    if not isinstance(node, yaml.MappingNode):
        return
    earlier: dict[str, tuple[yaml.Node, yaml.Node]] = {}
    for key, value in node.value:
        name = f"{prefix}{key.value}"
        if name in earlier:
            key_before, value_before = earlier[name]
            lines = f"lines {key_before.start_mark.line + 1} and {key.start_mark.line + 1}"
            if isinstance(value, yaml.MappingNode) or isinstance(value_before, yaml.MappingNode):
                raise UserError(f"{where}the section {name} stands twice ({lines}); put its keys together.")
            logger.warning("warning: %s%s stands twice (%s); the last counts.", where, name, lines)
        earlier[name] = key, value
        _look_for_repeats(value, where, f"{name}.")


def _read_yaml(path: str) -> dict:
    if not is_remote(path) and not Path(path).is_file():
        raise UserError(f"There is no config file {path}.")
    try:
        tree = _Files.load_yaml_with_base(path)
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"{path}: its _BASE_ file {error.filename} does not exist.") from None
    except yaml.YAMLError as error:
        line = " ".join(str(error).split())
        raise UserError(f"{path} is not valid YAML (tags that run code are refused): {line}") from None
    except Exception as error:  # what is in the file decides what fails: bytes, a list, a _BASE_ that is no name
        line = " ".join(str(error).split())[:200]
        raise UserError(f"{path} cannot be read as a config: {line}") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path} cannot be read as a config: it is not a tree of KEY: value.")
    return tree
