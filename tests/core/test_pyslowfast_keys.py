"""PySlowFast's keys beyond those that its 14 files set: defaults that are the same, and what is said of absent ones."""

from __future__ import annotations

import json

import pytest
import yaml
from paths import CONFIGS, REPOSITORY

from mfm_core.config import flatten, get_cfg, load_config
from mfm_core.config.absent import ABSENT
from mfm_core.errors import UserError

THEIRS = dict(flatten(json.loads((REPOSITORY / "tests" / "recipes" / "pyslowfast_defaults.json").read_text())))
"""Every key of the sections that its files of masked pre-training use -> its default there."""
OURS = dict(flatten(get_cfg()))
FINETUNE = str(CONFIGS / "masked_ssl" / "k400_VIT_B_16x4_FT.yaml")


@pytest.mark.parametrize("key", sorted(THEIRS.keys() & OURS.keys()))
def test_shared_keys_have_its_defaults(key):
    default = list(OURS[key]) if isinstance(OURS[key], tuple) else OURS[key]
    assert default == THEIRS[key] and isinstance(default, bool) == isinstance(THEIRS[key], bool)


def test_absent_keys_are_those_that_are_not_here():
    assert ABSENT.keys() == THEIRS.keys() - OURS.keys()
    assert {key: default for key, (default, _) in ABSENT.items()} == {key: THEIRS[key] for key in ABSENT}


def test_a_file_may_write_out_the_defaults_of_absent_keys(tmp_path):
    tree: dict = {"_BASE_": FINETUNE}
    for key in ABSENT:
        section, leaf = key.split(".")
        tree.setdefault(section, {})[leaf] = THEIRS[key]
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(tree))
    assert load_config(str(path)) == load_config(FINETUNE)
    words = [word for key in ABSENT for word in (key, str(THEIRS[key]))]
    assert load_config(FINETUNE, words) == load_config(FINETUNE)


OTHER = {bool: True, int: 3, float: 0.5, str: "other", list: [1, 2]}


@pytest.mark.parametrize("key", sorted(ABSENT))
def test_any_other_value_is_refused_with_what_to_do(key):
    with pytest.raises(UserError) as caught:
        load_config(FINETUNE, [key, str(OTHER[type(THEIRS[key])])])
    said = str(caught.value)
    assert said.startswith(f"command line: PySlowFast's {key} does not exist here: ") and said.endswith(".")
    assert "Did you mean" not in said and "\n" not in said


def test_what_is_named_instead_exists():
    """Each KEY and each tool that a line names."""
    for key, (_, instead) in ABSENT.items():
        words = [word.strip(",;.()") for word in instead.split()]
        named = [word for word in words if "." in word and word.split(".")[0].isupper()]
        assert set(named) <= OURS.keys(), key
        assert all((REPOSITORY / word).exists() for word in words if word.startswith("tools/")), key
        for word in words:
            assert not word.isupper() or "." in word or word in {"RGB", "LARS", "OUTPUT_DIR", "MIXUP"}, (key, word)


def test_nearly_absent_keys_are_unknown_as_before():
    with pytest.raises(UserError, match="there is no key TRAIN.CHECKPOINT_TYP"):
        load_config(FINETUNE, ["TRAIN.CHECKPOINT_TYP", "pytorch"])
