"""The guard over losses: what counts as an explosion, what it does to later steps, and what is said of it."""

from __future__ import annotations

import pytest
import torch

from mfm_core.engine.guard import StepGuard
from mfm_core.errors import UserError

INF, NAN = float("inf"), float("nan")


def guard_of(nonfinite: str = "skip", explosion: str = "skip", factor: float = 3.0, fp16: bool = False) -> StepGuard:
    return StepGuard(torch.device("cpu"), nonfinite, explosion, factor, tolerate_inf=fp16, history=100)


def judged(guard: StepGuard, *losses: float, norm: float = 1.0) -> list[int]:
    """1 for each of these losses that must not reach the weights."""
    start = len(guard._judged)
    return [
        int(guard.judge(start + i, torch.tensor(loss), torch.tensor(norm), torch.arange(4)))
        for i, loss in enumerate(losses)
    ]


def said(guard: StepGuard) -> list[str]:
    return guard.check(lambda i: f"file{i}", lambda mine: [mine])


def test_more_than_the_factor_times_the_mean():
    assert judged(guard_of(), 1.0, 2.9, 3.2, 0.0, -5.0) == [0, 0, 1, 0, 0]
    assert judged(guard_of(factor=0.0), 1.0, 1e30) == [0, 0]


def test_the_first_loss_is_the_first_mean():
    assert judged(guard_of(), 1e6, 1.0) == [0, 0]


@pytest.mark.parametrize("spoilt", [NAN, INF, -INF])
def test_what_is_not_finite_leaves_the_mean_alone(spoilt):
    """As the very first, too. An infinite mean would let everything pass from then on."""
    assert judged(guard_of(), 1.0, spoilt, 1.0, 50.0) == [0, 1, 0, 1]
    assert judged(guard_of(), spoilt, 1.0, 50.0) == [1, 0, 1]


def test_an_explosion_hardly_moves_the_mean():
    assert judged(guard_of(), 1.0, 1e9, 3.2) == [0, 1, 1]


def test_a_level_that_lasts_is_met():
    """Else a loss that has risen for good would cost all further steps."""
    found = judged(guard_of(), 1.0, *[10.0] * 60)
    assert found[:10] == [0, *[1] * 9] and found[-1] == 0
    assert found == sorted(found[:1]) + sorted(found[1:], reverse=True)


def test_a_resumed_run_judges_alike():
    whole, first, second = guard_of(), guard_of(), guard_of()
    losses = [1.0, 1.5, 1e9, 4.0, 3.4, 3.6]
    expected = judged(whole, *losses)
    found = judged(first, *losses[:3])
    second.load_state_dict({name: value.clone() for name, value in first.state_dict().items()})
    assert found + judged(second, *losses[3:]) == expected
    assert torch.equal(second.skipped, whole.skipped)


@pytest.mark.parametrize("explosion", ["stop", "skip"])
@pytest.mark.parametrize("nonfinite", ["stop", "skip"])
def test_each_kind_of_fault_has_its_own_remedy(nonfinite, explosion):
    """Both name the step and its files; only the key that says so lets the run go on."""
    for loss, remedy, key in ((NAN, nonfinite, "TRAIN.NONFINITE"), (50.0, explosion, "TRAIN.EXPLOSION")):
        guard = guard_of(nonfinite, explosion)
        assert judged(guard, 1.0, 1.0, loss) == [0, 0, 1]
        if remedy == "stop":
            with pytest.raises(UserError, match=f"stopped: at step 2 the loss was .* set {key} skip") as caught:
                said(guard)
            line = str(caught.value)
        else:
            (line,) = said(guard)
            assert line.startswith("Step 2 was skipped: at step 2 the loss was ")
        assert "Files in the batch: file0, file1, file2, file3" in line
        exploded = "50, more than TRAIN.KILL_LOSS_EXPLOSION_FACTOR 3 times its running mean 1"
        assert (exploded in line) == (loss == 50.0) and ("not finite" in line) == (loss != 50.0)


def test_a_gradient_that_is_not_finite():
    """Under an fp16 scaler it is ordinary: skipped without a word; an explosion is not."""
    assert judged(guard_of("stop"), 1.0, norm=INF) == [1]
    guard = guard_of("stop", "stop", fp16=True)
    assert judged(guard, 1.0, norm=INF) == [1] and said(guard) == []
    assert judged(guard, 50.0) == [1]
    with pytest.raises(UserError, match="running mean 1"):
        said(guard)
