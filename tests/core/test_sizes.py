"""Batch sizes that do not go with the files, the machines or the processes: what the one line says, works."""

from __future__ import annotations

import random
import re
from dataclasses import replace

import pytest

from mfm_core.config.sizes import Sizes

ONE_CELL = "BatchNorm needs two"


def cases(count: int) -> list[tuple[Sizes, str]]:
    """Sizes that are refused, of all kinds, and why a micro-batch needs two files, if it does."""
    draw, found = random.Random(0), []
    while len(found) < count:
        machines = draw.choice((1, 1, 2, 3))
        processes = machines * draw.randint(1, 4)
        accum = draw.choice((1, 1, 2, 3, 5))
        sizes = Sizes(draw.randint(0, 30), draw.randint(1, 40), machines, processes, accum, draw.random() < 0.5)
        need = draw.choice(("", ONE_CELL))
        if sizes.batch * machines % sizes.pieces == 0 and sizes.refusal(need):
            found.append((sizes, need))
    return found


def test_every_remedy_works():
    """Each on its own; and where another batch size would do, one is named."""
    kinds = set()
    for sizes, need in cases(600):
        said = sizes.refusal(need)
        assert "\n" not in said and said.endswith(".")
        batch = re.search(r"set TRAIN\.BATCH_SIZE to (\d+)( on each machine)?", said)
        any_batch = [b for b in range(1, 400) if not replace(sizes, batch=b).refusal(need)]
        assert (batch is not None) == bool(any_batch), (sizes, said)
        if batch:
            assert int(batch[1]) in any_batch and bool(batch[2]) == (sizes.machines > 1), (sizes, said)
            nearest = min(abs(b - sizes.batch) for b in any_batch)
            assert abs(int(batch[1]) - sizes.batch) == nearest, (sizes, said)
        other = replace(sizes, drop_last=not sizes.drop_last)
        named = re.search(r"set DATA_LOADER\.DROP_LAST (True|False)", said)
        assert (named is not None) == (not other.refusal(need)), (sizes, said)
        assert named is None or named[1] == str(other.drop_last)
        if "take fewer processes" in said:
            fewer = [replace(sizes, processes=n, accum_steps=1) for n in range(1, sizes.processes)]
            lower = [replace(sizes, processes=n) for n in range(1, sizes.processes)]
            assert any(not s.refusal(need) for s in fewer + lower) or sizes.machines > 1, (sizes, said)
        if most := re.search(r"take at most (\d+) processes", said):
            one = Sizes(sizes.files, int(most[1]) * (2 if need else 1), 1, int(most[1]), 1, sizes.drop_last)
            assert not one.refusal(need), (sizes, said)
        kinds |= set(re.findall(r"set TRAIN.BATCH_SIZE|DROP_LAST (?:True|False)[,.]|take [a-z]+ \w+|lower|add", said))
    assert len(kinds) == 7, kinds


@pytest.mark.parametrize(
    ("sizes", "need", "said"),
    [
        (Sizes(5, 8, 1, 8, 1, True), "", "only 5 training files; take at most 5 processes times TRAIN.ACCUM_STEPS."),
        (
            Sizes(5, 8, 1, 8, 1, False),
            "",
            "into 1 batch of 5, too few for 8 processes times TRAIN.ACCUM_STEPS 1; take fewer processes.",
        ),
        (
            Sizes(13, 12, 1, 4, 1, False),
            ONE_CELL,
            "two; set TRAIN.BATCH_SIZE to 16, or set DATA_LOADER.DROP_LAST True, or take fewer processes.",
        ),
        (
            Sizes(24, 64, 2, 2, 1, True),
            "",
            "is 128 over all machines, but there are only 24 training files; set TRAIN.BATCH_SIZE to 12 on each "
            "machine, or set DATA_LOADER.DROP_LAST False.",
        ),
        (Sizes(0, 8, 1, 1, 1, True), "", "There are no training files; see DATA.PATH_TO_DATA_DIR."),
        (Sizes(0, 8, 1, 1, 1, False), "", "There are no training files; see DATA.PATH_TO_DATA_DIR."),
    ],
    ids=lambda p: "" if isinstance(p, str) else f"{p.files}-{p.batch}-{p.processes}",
)
def test_messages(sizes, need, said):
    assert sizes.refusal(need).endswith(said), sizes.refusal(need)
