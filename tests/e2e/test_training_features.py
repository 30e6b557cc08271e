"""What the keys of the training loop promise, on whole runs of a few steps."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from tiny_runs import assert_same, last_state, tiny_config

from mfm_core.engine.guard import StepGuard
from mfm_core.engine.trainer import Trainer
from mfm_core.optim.build import build_optimizer
from mfm_image.entry import main
from mfm_image.models import build_model

ONE_EPOCH = ["SOLVER.MAX_EPOCH", 1, "MONITOR.PERIOD", 0, "MONITOR.PICTURE_PERIOD", 0, "KNN.PERIOD", 0]
"""Three steps, and no evaluation."""


def train(kind, data, output, *overrides):
    """The last checkpoint of a run of three steps."""
    assert main(tiny_config(kind, data, output, *ONE_EPOCH, *overrides)) == 0
    return last_state(output)


def log_lines(output, kind):
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


@pytest.fixture(scope="module")
def plain_run(photo_folder, tmp_path_factory):
    """The folder and the last checkpoint of a pre-training run with no feature on."""
    output = tmp_path_factory.mktemp("plain")
    return output, train("pretrain", photo_folder, output)


@pytest.fixture(scope="module")
def rounded_run(photo_folder, tmp_path_factory):
    """The same in bf16."""
    output = tmp_path_factory.mktemp("rounded")
    return output, train("pretrain", photo_folder, output, "TRAIN.PRECISION", "bf16")


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulated_gradients_are_those_of_the_whole_batch(parts, plain_run, photo_folder, tmp_path):
    """Masks hide different numbers of tokens, so that a mean of the parts' means would not do."""
    state = train("pretrain", photo_folder, tmp_path, "TRAIN.ACCUM_STEPS", parts)
    assert state["step"] == plain_run[1]["step"] == 3
    assert_same(plain_run[1], state, atol=1e-6)


def test_checkpointed_activations_change_nothing(plain_run, photo_folder, tmp_path):
    assert_same(plain_run[1], train("pretrain", photo_folder, tmp_path, "MODEL.ACT_CHECKPOINT", True))


def test_checkpointed_activations_repeat_drop_path(photo_folder, tmp_path):
    drop = ["MVIT.DROPPATH_RATE", 0.5]
    states = [
        train("finetune", photo_folder, tmp_path / str(on), *drop, "MODEL.ACT_CHECKPOINT", on) for on in (False, True)
    ]
    assert_same(*states)


def test_moving_average(photo_folder, tmp_path, monkeypatch):
    """decay * average + (1 - decay) * weights after each step, from the initial weights on."""
    decay, seen = 0.7, []
    take_step = Trainer.train_step

    def watched(trainer, batch):
        if not seen:
            seen.append(snapshot(trainer.state.model))
        result = take_step(trainer, batch)
        seen.append(snapshot(trainer.state.model))
        return result

    monkeypatch.setattr(Trainer, "train_step", watched)
    state = train("pretrain", photo_folder, tmp_path, "TRAIN.EMA_DECAY", decay, "SOLVER.BASE_LR", 0.01)
    expected = seen[0]
    for weights in seen[1:]:
        expected = {name: decay * average + (1 - decay) * weights[name] for name, average in expected.items()}
    for name, tensor in state["ema_state"].items():
        torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-6, atol=1e-7)
    assert any(not torch.equal(state["ema_state"][name], tensor) for name, tensor in state["model_state"].items())


def snapshot(model):
    return {name: tensor.detach().double().clone() for name, tensor in model.state_dict().items()}


def test_bf16_trains_like_fp32(plain_run, rounded_run):
    """On any CPU: what the machine lacks in instructions, torch emulates. Weights stay in fp32."""
    assert {tensor.dtype for tensor in rounded_run[1]["model_state"].values()} == {torch.float32}
    for rounded, exact in zip(log_lines(rounded_run[0], "step"), log_lines(plain_run[0], "step"), strict=True):
        assert rounded["loss"] == pytest.approx(exact["loss"], rel=2e-2)
        assert rounded["loss"] != exact["loss"], "nothing was rounded: autocast was off"


@pytest.mark.parametrize("method", ["adamw", "sgd"])
def test_a_faulty_step_leaves_weights_and_moments_alone(method, photo_folder, tmp_path):
    """The guard's verdict reaches the fused optimizer as `found_inf`."""
    cfg = tiny_config("pretrain", photo_folder, tmp_path, "SOLVER.OPTIMIZING_METHOD", method)
    torch.manual_seed(0)
    model = build_model(cfg)
    optimizer = build_optimizer(model, cfg)
    guard = StepGuard(torch.device("cpu"), "skip", "stop", 0.0, tolerate_inf=False, history=1)

    def step(loss, gradient):
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, gradient)
        optimizer.found_inf = guard.judge(0, torch.tensor(loss), torch.tensor(gradient), torch.arange(8))
        optimizer.step()
        states = [value for slots in optimizer.state.values() for value in slots.values() if value is not None]
        return [tensor.clone() for tensor in (*model.parameters(), *states)]

    before = step(1.0, 0.1)
    for loss, gradient in ((float("nan"), float("nan")), (1.0, float("inf")), (float("inf"), 0.1)):
        assert all(map(torch.equal, step(loss, gradient), before))
    assert guard.skipped == 3
    after = step(1.0, 0.1)
    assert not any(map(torch.equal, after, before)), "every tensor moves again"


def test_two_views_of_each_file(photo_folder, tmp_path, monkeypatch):
    """AUG.NUM_SAMPLE 2: the same number of steps, twice the images in each, two different views per file."""
    batches = []
    take_step = Trainer.train_step
    monkeypatch.setattr(Trainer, "train_step", lambda self, batch: batches.append(batch) or take_step(self, batch))
    state = train("pretrain", photo_folder, tmp_path, "AUG.NUM_SAMPLE", 2)
    assert state["step"] == len(batches) == 3
    for batch in batches:
        assert len(batch) == len(batch.mask) == 16
        files, counts = batch.index.unique(return_counts=True)
        assert len(files) == 8 and (counts == 2).all()
        for index in files:
            one, other = batch.inputs[batch.index == index]
            assert not torch.equal(one, other)


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("c++") or shutil.which("g++")), reason="compiling needs a C++ compiler")
def test_compiled_training(rounded_run, photo_folder, tmp_path):
    """In bf16; `tests/core/test_attention.py` compiles in fp32."""
    torch.compiler.reset()
    overrides = ["TRAIN.COMPILE", True, "TRAIN.PRECISION", "bf16", "TRAIN.STOP_STEP", 2]
    state = train("pretrain", photo_folder, tmp_path, *overrides)
    assert state["step"] == 2
    assert state["model_state"].keys() == rounded_run[1]["model_state"].keys()
    for compiled, eager in zip(log_lines(tmp_path, "step"), log_lines(rounded_run[0], "step")[:2], strict=True):
        assert compiled["loss"] == pytest.approx(eager["loss"], rel=2e-3)
        assert compiled["grad_norm"] == pytest.approx(eager["grad_norm"], rel=3e-2)
