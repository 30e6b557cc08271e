"""Whether a run goes on under the configuration that it began with: what differs, by key, and what that means.

What makes it another run altogether is `state.identity`; here is what can change under way, but should not unnoticed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fvcore.common.config import CfgNode

from mfm_core.checkpoint.folder import FACTS
from mfm_core.config.load import flatten, stored_config, value_of
from mfm_core.data.listing import PathTable
from mfm_core.errors import UserError, named
from mfm_core.paths import is_remote, local_path

START, DATA = "TRAIN.CHECKPOINT_FILE_PATH", "DATA.PATH_TO_DATA_DIR"
"""Keys that name files: what counts is what these hold, not where they lie."""
FREE = {
    # Where and how fast a run computes, what it writes, when it stops: its numbers stay what they are.
    *("OUTPUT_DIR", "NUM_GPUS", "NUM_SHARDS", "DEVICE", "LOG_PERIOD", "LOG_MODEL_INFO"),
    *("DATA.PATH_PREFIX", "DATA.PATH_LABEL_SEPARATOR", "DATA.DECODING_BACKEND", "DATA.MAX_BAD_SHARE"),
    *("DATA_LOADER.NUM_WORKERS", "DATA_LOADER.PIN_MEMORY", "AUG.GEN_MASK_LOADER", "MODEL.ACT_CHECKPOINT"),
    *("TRAIN.BATCH_SIZE", "TRAIN.ACCUM_STEPS", "TRAIN.COMPILE", "TRAIN.STOP_STEP", "TRAIN.AUTO_RESUME"),
    *("TRAIN.CHECKPOINT_PERIOD", "TRAIN.CHECKPOINT_STEPS", "TRAIN.CHECKPOINT_KEEP", "TRAIN.CHECKPOINT_FORMAT"),
    *("TRAIN.CHECKPOINT_ASYNC", "TRAIN.CHECKPOINT_EPOCH_RESET", "TRAIN.CHECKPOINT_MIN_MATCH"),
    # What is done about a faulty step: a run that stopped at one goes on with another answer.
    *("TRAIN.KILL_LOSS_EXPLOSION_FACTOR", "TRAIN.EXPLOSION", "TRAIN.NONFINITE"),
    # The batch over all machines and the task are in `state.identity`.
    *("TASK", "MODEL.MODEL_NAME", "TEST.BATCH_SIZE", "TEST.DATASET", "TEST.CHECKPOINT_FILE_PATH"),
}
FREE_SECTIONS = ("DIST",)
LOOKS = ("TEST", "MONITOR", "KNN", "PICTURE")
"""Sections of what is only looked at: such a change is no other run, but comes too late once it has finished."""


def held(paths: PathTable, labels: Any) -> dict[str, str]:
    """What the training files are, by the key that names them, in a digest of their names and labels."""
    return {DATA: hashlib.blake2b(paths.content() + labels.tobytes(), digest_size=16).hexdigest()}


def start_digest(path: str) -> dict[str, str]:
    """What the weights are that a run starts from, by the key that names them, in a digest of the file.

    Of a folder it is that of its small file, which has the others' checksums. Raises UserError for an address that
    cannot be fetched, OSError for a file that cannot be read.
    """
    file, digest = Path(local_path(path, START)), hashlib.blake2b(digest_size=16)
    with (file / FACTS if file.is_dir() else file).open("rb") as opened:
        while data := opened.read(1 << 24):
            digest.update(data)
    return {START: digest.hexdigest()}


def compare_runs(
    content: dict[str, Any], cfg: CfgNode, training_files: dict[str, str], finished: bool, path: Path | str, remedy: str
) -> list[str]:
    """What to warn of where a run goes on from `content` with `cfg`.

    content: of the checkpoint at `path`. training_files: what `held` says of them. finished: whether there is nothing
    left to train. remedy: what would begin another run. Raises UserError where a finished run would be taken for what
    `cfg` describes.
    """
    began = stored_config(content["cfg"])
    looks = [_named(key, began, cfg) for key in _changed(began, cfg) if _is_look(key)]
    others = [_named(key, began, cfg) for key in _changed(began, cfg) if not _is_look(key)]
    if "held" in content:
        others += _other_files(content["held"], began, cfg, training_files, str(path))
    if others and finished:
        raise UserError(f"{path} is of a run that has finished with other values ({named(others)}); {remedy}.")
    warnings = []
    if others:
        warnings.append(f"The run has begun with other values ({named(others)}). Where it shall not go on, {remedy}.")
    if looks and finished:
        warnings.append(f"The run has finished, and was looked at with other values ({named(looks)}).")
    return warnings


def _is_look(key: str) -> bool:
    return key.split(".")[0] in LOOKS or key == "TRAIN.EVAL_PERIOD"


def _changed(began: CfgNode, cfg: CfgNode) -> Iterator[str]:
    """Keys with another value, but for those whose value says nothing."""
    for key, value in flatten(cfg):
        free = key in FREE or key in (START, DATA) or key.split(".")[0] in FREE_SECTIONS
        if not free and value_of(began, key) != value:
            yield key


def _named(key: str, began: CfgNode, cfg: CfgNode) -> str:
    there, here = (value_of(config, key) for config in (began, cfg))
    return f"{key} {_shown(there)}, here {_shown(here)}"


def _shown(value: Any) -> str:
    return repr(value) if value == "" else str(value)


def _other_files(
    there: dict[str, str], began: CfgNode, cfg: CfgNode, training_files: dict[str, str], path: str
) -> Iterator[str]:
    """In what the files differ that both configurations name. A run that goes on from what START names has no other."""
    if there.get(DATA) != training_files[DATA]:
        yield f"{DATA} {value_of(began, DATA)}, here {value_of(cfg, DATA)}, other files"
    before, now = value_of(began, START), value_of(cfg, START)
    if not (_same_place(before, now) or now == path) and _start_of(now) != there.get(START, ""):
        yield _named(START, began, cfg)


def _start_of(path: str) -> str:
    """The digest of the weights there, "" of none; what equals no digest where they cannot be read."""
    try:
        return start_digest(path)[START] if path else ""
    except (OSError, UserError):
        return "unreadable"


def _same_place(one: str, other: str) -> bool:
    if one == other or not one or not other or is_remote(one) or is_remote(other):
        return one == other
    return Path(one).resolve() == Path(other).resolve()
