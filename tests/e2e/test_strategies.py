"""Every strategy trains what one process trains: the same weights after 20 steps on the same global batches.

Each world of processes is started once and goes through all cases with the real trainer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from strategy_runs import SOLVERS, Case, continue_case, furthest, furthest_moment, in_world, run_case

from mfm_core.parallel.world import World

pytestmark = pytest.mark.xdist_group("strategies")  # what they share is made once
STRATEGIES = ("ddp", "sharded_ddp", "fsdp2")
# A key's bias has no gradient but rounding noise, of which AdamW makes whole steps.
ONE_BLOCK = ("MVIT.DEPTH", 1, "MASK.PRETRAIN_DEPTH", "[0]", "MVIT.QKV_BIAS", False)
SYNCED = ("BN.NORM_TYPE", "sync_batchnorm")
CLIP = ("SOLVER.CLIP_GRAD_L2NORM", 0.05)
AVERAGED = ("TRAIN.EMA_DECAY", 0.9, *CLIP)
EXACT = 1e-5
LOOSE = {"rtol": 0.05, "atol": 0.05}


def matrix() -> list[Case]:
    cases = []
    for solver, precision, clip, parts in product(SOLVERS, ("fp32", "bf16"), ((), CLIP), (1, 2)):
        for strategy in STRATEGIES:
            name = f"{strategy} {solver} {precision} {'clip' if clip else 'free'} {parts}"
            cases.append(
                Case(name, strategy, solver=solver, overrides=ONE_BLOCK + clip, precision=precision, parts=parts)
            )
    return cases


class Alone:
    """What one process makes of a case; each is run once."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.known = folder, {}

    def __call__(self, case: Case, parts: int = 1) -> dict:
        dist = [pair for pair in zip(case.overrides[::2], case.overrides[1::2]) if not pair[0].startswith("DIST.")]
        factor = max(1, parts // case.parts) if case.precision != "fp32" else 1
        alone = replace(case, name="alone", strategy="single", parts=parts, stop=0, factor=factor)
        alone = replace(alone, overrides=tuple(x for pair in dist for x in pair))
        if alone not in self.known:
            self.known[alone] = run_case(alone, World(), self.folder)
        return self.known[alone]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return Alone(tmp_path_factory.mktemp("alone"))


@pytest.fixture
def report(record_property):
    """Prints the worst differences at the end of the test run."""

    def report(worst: dict[str, dict[str, float]], size: int | str) -> None:
        for strategy, by in worst.items():
            numbers = ", ".join(f"{what} {value:.1e}" for what, value in by.items())
            record_property("told", f"{size} processes, {strategy}: worst differences from one process: {numbers}")

    return report


def found_unused(strategy: str) -> tuple:
    return ("DIST.FIND_UNUSED", True) if strategy == "ddp" else ()


def specials(size: int) -> dict[Case, int]:
    """Cases beyond the matrix, and how many micro-batches one process must see to compute the same."""
    cases: dict[Case, int] = {}
    for s in STRATEGIES:
        cases |= {
            Case(f"{s} uneven parts", s, batch=7, parts=2): 1,
            Case(f"{s} idle", s, twist="idle in turns", parts=2, overrides=found_unused(s)): 1,
            Case(f"{s} faults", s, twist="faults", parts=2, overrides=AVERAGED): 2 * size,
            Case(f"{s} faults sgd", s, solver="sgd", twist="faults"): size,
            Case(f"{s} faults lars", s, solver="lars", twist="faults"): size,
            Case(f"{s} fp16", s, precision="fp16", twist="one infinity", overrides=CLIP): size,
            Case(f"{s} average", s, overrides=AVERAGED): 1,
            Case(f"{s} BatchNorm", s, kind="resnet", solver="sgd"): size,
            Case(f"{s} SyncBatchNorm", s, kind="resnet", solver="sgd", batch=7, overrides=SYNCED): 1,
            Case(f"{s} layer decay", s, kind="classifier", overrides=("SOLVER.LAYER_DECAY", 0.6)): 1,
            Case(f"{s} value", s, overrides=("SOLVER.CLIP_GRAD_VAL", 0.005)): 1,
            Case(f"{s} probe", s, kind="probe", solver="lars", overrides=("SOLVER.LARS_ADAPT_1D", True)): 1,
            # not AdamW, which makes whole steps of rounding noise: all that a key's bias ever has for a gradient
            Case(f"{s} autoencoder", s, kind="mff", solver="sgd"): 1,
            Case(f"{s} video", s, kind="mvit", solver="sgd", parts=2, overrides=CLIP): 1,
            Case(f"{s} recomputed", s, overrides=("MODEL.ACT_CHECKPOINT", True)): 1,
        }
        if s != "sharded_ddp":
            cases[Case(f"{s} idle last", s, twist="idle in the last", parts=2, overrides=found_unused(s))] = 2 * size
    keep, offload = ("DIST.RESHARD_AFTER_FORWARD", False), ("DIST.CPU_OFFLOAD", True)
    exact = ("DIST.PARAM_PRECISION", "fp32")
    cases |= {
        Case("fsdp2 BatchNorm bf16", "fsdp2", kind="resnet", solver="sgd", precision="bf16"): size,
        Case("fsdp2 probe bf16", "fsdp2", kind="probe", solver="lars", precision="bf16"): 1,
        Case("fsdp2 video bf16", "fsdp2", kind="mvit", solver="sgd", precision="bf16"): size,
        Case("fsdp2 recomputed bf16", "fsdp2", overrides=("MODEL.ACT_CHECKPOINT", True), precision="bf16"): size,
        Case("fsdp2 exact", "fsdp2", precision="bf16", overrides=exact): size,
        Case("ddp idle parts", "ddp", twist="idle in parts", overrides=found_unused("ddp")): size,
        Case("sharded_ddp no buckets", "sharded_ddp", twist="no buckets", parts=2, overrides=CLIP): 1,
        Case("fsdp2 keep", "fsdp2", overrides=keep, parts=2): 1,
        Case("fsdp2 offload", "fsdp2", overrides=offload + CLIP, parts=2): 1,
        Case("fsdp2 offload lars", "fsdp2", solver="lars", overrides=offload): 1,
    }
    cases = {replace(case, steps=12 if case.precision == "fp16" else 8): parts for case, parts in cases.items()}
    thirds = ("uneven", "idle", "faults", "fp16", "average", "probe", "BatchNorm", "SyncBatchNorm", "no", "offload")
    return cases if size == 2 else {case: parts for case, parts in cases.items() if case.name.split()[1] in thirds}


def reduced() -> list[Case]:
    """FSDP2 with gradients summed in bf16, which rounds once more."""
    lower = ("DIST.REDUCE_PRECISION", "auto")
    return [
        Case(f"fsdp2 {solver} reduced", "fsdp2", solver=solver, precision="bf16", overrides=lower, steps=8)
        for solver in SOLVERS
    ]


REFUSED = [
    (Case("idle", "ddp", twist="idle in turns"), "DIST.FIND_UNUSED"),
    (Case("parts", "sharded_ddp", twist="idle in parts"), "DIST.STRATEGY sharded_ddp"),
    (Case("last", "sharded_ddp", twist="idle in the last", parts=2), "DIST.STRATEGY sharded_ddp"),
    (Case("single", "single"), "DIST.STRATEGY single"),
]


@pytest.mark.parametrize("size", [2, 3])
def test_every_strategy_equals_one_process(size, alone, tmp_path, report):
    """20 steps of every optimizer and precision, what else there is, and resumed runs bit for bit; all in one world."""
    again = [Case(f"{s} again", s, steps=8, stop=4, overrides=AVERAGED) for s in STRATEGIES]
    refused = [case for case, _ in REFUSED]
    found = in_world(size, [*matrix(), *specials(size), *again, *reduced(), *refused], tmp_path)
    check_matrix(size, found, alone, report)
    check_specials(size, found, alone, report)
    for strategy in STRATEGIES:
        # DDP sorts its buckets anew after the first step, and in which order gloo's ring adds up three numbers depends
        # on their place in a bucket.
        bound = EXACT if strategy == "ddp" and size > 2 else 0
        for part in ("model_state", "ema_state"):
            assert furthest(found[f"{strategy} again"], found[f"{strategy} average"], part) <= bound, strategy
    for case in reduced():
        expected = alone(case)
        assert furthest(found[case.name], expected) <= 3 * furthest(expected, exactly(case, alone)), case.name
    for case, words in REFUSED:
        assert words in found[case.name]["refused"] and "\n" not in found[case.name]["refused"]


def exactly(case: Case, alone: Alone, parts: int = 1) -> dict:
    """The same in fp32."""
    return alone(replace(case, precision="fp32"), parts)


def bound_of(case: Case, expected: dict, alone: Alone, parts: int) -> float:
    """How far from one process a case may end.

    fp32: 1e-5. bf16, fp16: a gradient is rounded once for each micro-batch, so that one process must see the same
    ones; then again only the order of float32 sums differs. What is left comes from numbers that lie within that
    difference of a rounding boundary, and may be a twentieth of what rounding does to the weights at all. (A tenth on
    video: relative positions stand in no layer of their own, so that FSDP2 rounds them before autocast sees them.)
    """
    if case.precision == "fp32":
        return EXACT
    return max(EXACT, (0.1 if case.kind == "mvit" else 0.05) * furthest(expected, exactly(case, alone, parts)))


def check_matrix(size: int, found: dict, alone: Alone, report: Callable) -> None:
    worst, wrong = defaultdict(lambda: defaultdict(float)), {}
    for case in matrix():
        rounded = case.precision == "bf16"
        parts = size * case.parts if rounded else 1
        expected = alone(case, parts)
        difference, bound = furthest(found[case.name], expected), bound_of(case, expected, alone, parts)
        moments, kinds = furthest_moment(found[case.name], expected), worst[case.strategy]
        kinds[case.precision] = max(kinds[case.precision], difference)
        kinds[f"moments {case.precision}"] = max(kinds[f"moments {case.precision}"], moments)
        torch.testing.assert_close(found[case.name]["norms"], expected["norms"], rtol=1e-2 if rounded else 1e-4, atol=0)
        if CLIP[0] in case.overrides:
            assert (expected["norms"] > CLIP[1]).all(), "nothing was clipped"
        if not difference <= bound:
            wrong[case.name] = difference, bound
    report(worst, size)
    assert not wrong, wrong


def check_specials(size: int, found: dict, alone: Alone, report: Callable) -> None:
    worst, wrong = defaultdict(dict), {}
    for case, parts in specials(size).items():
        one, what = found[case.name], case.name.removeprefix(case.strategy + " ")
        assert "refused" not in one, (case.name, one)
        expected = alone(case, parts)
        own = [name for name in one["model_state"] if "running_" in name or "num_batches" in name]
        for name in own if what != "SyncBatchNorm" else ():
            # one process sees the micro-batches one after the other
            same = found[f"ddp {what.removesuffix(' bf16')}"]["model_state"][name]
            torch.testing.assert_close(one["model_state"][name], same, **LOOSE if case.precision == "bf16" else {})
            expected["model_state"][name] = one["model_state"][name]
        difference = max(furthest(one, expected, part) for part in ("model_state", "ema_state") if one[part])
        bound = bound_of(case, expected, alone, parts)
        worst[case.strategy][what] = difference
        if not difference <= bound:
            wrong[case.name] = difference, bound
        if case.precision == "fp32":
            assert furthest_moment(one, expected) < 1e-3, case.name
        if case.precision == "fp16":
            assert len(set(one["scales"])) == 1 and one["scales"][0] == expected["scales"][0] < 2.0**26, one["scales"]
        assert int(one["guard_state"]["skipped"]) == int(expected["guard_state"]["skipped"])
        assert case.twist != "faults" or int(one["guard_state"]["skipped"]) == 2
        assert one["metrics"] == pytest.approx(expected["metrics"], abs=1e-6)
    report(worst, size)
    assert not wrong, wrong


def lap(solver: str, strategy: str, steps: int, start: str = "") -> Case:
    """Trains until `steps`, from the file `start` on."""
    name = f"{start or solver} {strategy}"
    return Case(name, strategy, solver=solver, overrides=AVERAGED, steps=steps, twist=start)


def test_checkpoints_move_between_strategies_and_worlds(alone, tmp_path, report):
    """One process or three under any strategy, then two under any, then one: always what one process does throughout.

    At each change of hands the file is one that a single process could have written.
    """
    first = in_world(3, [lap(solver, s, 4) for solver in SOLVERS for s in STRATEGIES], tmp_path / "three")
    first |= {f"{solver} single": alone(lap(solver, "single", 4)) for solver in SOLVERS}
    for name, state in first.items():
        torch.save(state, tmp_path / f"{name}.pyth")
    then = [lap(name.split()[0], s, 8, name) for name in first for s in STRATEGIES if s != name.split()[1]]
    second = in_world(2, then, tmp_path / "two", continue_case)
    worst: dict[str, dict[str, float]] = defaultdict(dict)
    for name, state in second.items():
        torch.save(state, tmp_path / f"{name}.pyth")
        solver, *way = name.split()
        last = continue_case(lap(solver, "single", 12, name), World(), tmp_path / "one")
        undisturbed = alone(lap(solver, "single", 12))
        worst[solver][" to ".join(way)] = max(furthest(last, undisturbed, x) for x in ("model_state", "ema_state"))
        assert furthest_moment(last, undisturbed) < 1e-3
    report(worst, "3 or 1, then 2, then 1")
    assert max(value for by in worst.values() for value in by.values()) <= EXACT
