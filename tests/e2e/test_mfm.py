"""Runs of a few steps of MFM and its siblings, on ViT and ResNet, through everything that a run has."""

from __future__ import annotations

import json

import pytest
import torch
from tiny_runs import assert_same, last_state, tiny_config

from mfm_core.engine.trainer import Trainer
from mfm_core.parallel.launch import launch
from mfm_image.backbones import resnet
from mfm_image.entry import dry_run, main

MFM = ["MASK.METHOD", "mfm", "MASK.PRED_HOG", "False", "MFM.RADIUS", "6", "MFM.BLUR_KERNEL_SIZE", "[7, 9]"]
MFM += ["MONITOR.PICTURE_PERIOD", "0", "SOLVER.MAX_EPOCH", "1", "MFM.SR_FACTOR", "4", "AUG.MASK_RATIO", "0.0"]
VIT, RESNET = [], ["MODEL.ARCH", "resnet", "DATA.TRAIN_CROP_SIZE", "64", "DATA.TEST_CROP_SIZE", "64"]
COINCHEUNG = ["MFM.FILTER", "magnitude", "MFM.CENTRE", "half", "MFM.GREY", "True", "MFM.LOSS_REDUCTION", "sample"]


@pytest.fixture(autouse=True)
def narrow_resnet(monkeypatch):
    """A ResNet with few and narrow blocks in place of every depth."""
    monkeypatch.setattr(resnet, "LAYERS", dict.fromkeys(resnet.LAYERS, (1, 1, 1, 1)))
    monkeypatch.setattr(resnet, "STEM", 4)
    monkeypatch.setattr(resnet, "PLANES", (2, 3, 4, 6))


def mfm_config(data, output, *overrides):
    return tiny_config("pretrain", data, output, *MFM, *overrides)


def losses(output):
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["kind"] == "step"]


def train(data, output, *overrides):
    """The last checkpoint of a run of three steps (one epoch)."""
    assert main(mfm_config(data, output, *overrides)) == 0
    return last_state(output)


@pytest.mark.parametrize("backbone", [VIT, RESNET], ids=["vit", "resnet"])
@pytest.mark.parametrize("target", ["spectrum", "hog"])
@pytest.mark.parametrize("corruption", ["frequency", "sr", "deblur", "denoise"])
def test_corruptions_and_targets(corruption, target, backbone, photo_folder, tmp_path):
    """Each combination trains, evaluates and describes itself; its weights move and stay finite."""
    keys = [*backbone, "MFM.CORRUPTION", corruption, "MASK.TARGET", target, "KNN.PERIOD", "1"]
    cfg = mfm_config(photo_folder, tmp_path, *keys)
    described = "\n".join(dry_run(cfg))
    state = train(photo_folder, tmp_path, *keys)
    assert state["step"] == 3
    weights = [t.numel() for n, t in state["model_state"].items() if not n.endswith(("_mean", "_var", "_tracked"))]
    assert f"({sum(weights):,})" in described
    values = losses(tmp_path)
    assert len(values) == 3 and all(0.01 < value < 10 for value in values)
    assert all(torch.isfinite(t).all() for t in state["model_state"].values() if t.is_floating_point())
    assert any(slots["exp_avg"].abs().max() > 0 for slots in state["optimizer_state"]["state"].values())


def test_the_other_implementation(photo_folder, tmp_path):
    state = train(photo_folder, tmp_path, *RESNET, *COINCHEUNG)
    assert state["model_state"]["head.projections.0.bias"].shape == (32 * 32,), "one channel"


@pytest.mark.parametrize("reduction", ["masked", "normal", "sample"])
def test_accumulated_gradients_are_those_of_the_whole_batch(reduction, photo_folder, tmp_path):
    """Images hide different numbers of frequencies, so that a mean of the parts' means would not do."""
    keys = ["MFM.LOSS_REDUCTION", reduction]
    whole = train(photo_folder, tmp_path / "whole", *keys)
    parts = train(photo_folder, tmp_path / "parts", *keys, "TRAIN.ACCUM_STEPS", "4")
    assert_same(whole, parts, atol=2e-6)


def test_two_processes_equal_one(photo_folder, tmp_path):
    """Their images hide different numbers of frequencies, too."""
    keys = ["SOLVER.MAX_EPOCH", "4", "TRAIN.BATCH_SIZE", "12", "SOLVER.CLIP_GRAD_L2NORM", "0.05"]
    one = train(photo_folder, tmp_path / "one", *keys)
    cfg = mfm_config(photo_folder, tmp_path / "two", *keys, "NUM_GPUS", "2", "TRAIN.ACCUM_STEPS", "2")
    assert launch(main, (cfg,), processes=2) == 0
    other = last_state(tmp_path / "two")
    assert one["step"] == other["step"] == 8
    assert_same(one, other, atol=1e-5)


@pytest.mark.parametrize("corruption", ["frequency", "denoise"])
def test_stopped_and_resumed_with_running_statistics(corruption, photo_folder, tmp_path):
    """A run that stopped after any step ends bit for bit as one that did not, BatchNorm and its average included."""
    keys = [*RESNET, "MFM.CORRUPTION", corruption, "TRAIN.EMA_DECAY", "0.9"]
    expected = train(photo_folder, tmp_path / "whole", *keys)
    assert any(name.endswith("running_var") for name in expected["ema_state"])
    for stop in (1, 2):
        output = tmp_path / f"stopped_{stop}"
        train(photo_folder, output, *keys, "TRAIN.STOP_STEP", stop)
        assert_same(train(photo_folder, output, *keys, "DATA_LOADER.NUM_WORKERS", stop - 1), expected)


def test_checkpointed_activations_change_nothing(photo_folder, tmp_path):
    plain = train(photo_folder, tmp_path / "plain", *RESNET)
    assert_same(plain, train(photo_folder, tmp_path / "saving", *RESNET, "MODEL.ACT_CHECKPOINT", "True"), atol=1e-7)


def test_a_faulty_step_leaves_weights_and_statistics_alone(photo_folder, tmp_path, monkeypatch):
    """Photos full of NaN in the second step: it is skipped, and the running statistics are those of the first."""
    take_step, seen = Trainer.train_step, []

    def poisoned(trainer, batch):
        if trainer.state.step == 1:
            batch.inputs.fill_(float("nan"))
        result = take_step(trainer, batch)
        seen.append({n: t.clone() for n, t in trainer.state.model.state_dict().items() if t.is_floating_point()})
        return result

    monkeypatch.setattr(Trainer, "train_step", poisoned)
    train(photo_folder, tmp_path, *RESNET, "TRAIN.NONFINITE", "skip")
    for name, tensor in seen[0].items():
        assert torch.equal(seen[1][name], tensor), name
    assert not torch.equal(seen[2]["backbone.bn1.running_mean"], seen[1]["backbone.bn1.running_mean"])


def test_bf16(photo_folder, tmp_path):
    for backbone in (VIT, RESNET):
        name = "resnet" if backbone else "vit"
        train(photo_folder, tmp_path / f"{name}_exact", *backbone)
        train(photo_folder, tmp_path / f"{name}_rounded", *backbone, "TRAIN.PRECISION", "bf16")
        exact, rounded = losses(tmp_path / f"{name}_exact"), losses(tmp_path / f"{name}_rounded")
        assert rounded == pytest.approx(exact, rel=2e-2)
        assert rounded != exact


def test_maskfeat_predicts_spectra(photo_folder, tmp_path):
    """A token method with the spectrum as target: hidden patches are pasted into the image."""
    keys = ["MASK.METHOD", "maskfeat", "MASK.PRED_HOG", "False", "MASK.TARGET", "spectrum"]
    keys += ["MONITOR.PICTURE_PERIOD", "0", "SOLVER.MAX_EPOCH", "1"]
    states = []
    for parts in (1, 2):
        output = tmp_path / str(parts)
        assert main(tiny_config("pretrain", photo_folder, output, *keys, "TRAIN.ACCUM_STEPS", parts)) == 0
        states.append(last_state(output))
    assert all(0.001 < value < 1 for value in losses(tmp_path / "1"))
    assert_same(*states, atol=2e-6)


def test_classifier_on_a_resnet(photo_folder, tmp_path):
    """Fine-tuning starts from the pre-trained ResNet, which a learning rate of zero leaves as it is, and evaluates at
    another size; only the running statistics go on."""
    pretrained, output = tmp_path / "pretrain", tmp_path / "finetune"
    before = train(photo_folder, pretrained, *RESNET)["model_state"]
    path = next((pretrained / "checkpoints").glob("*.pyth"))
    keys = ["MODEL.ARCH", "resnet", "DATA.TRAIN_CROP_SIZE", "64", "DATA.TEST_CROP_SIZE", "96", "SOLVER.MAX_EPOCH", "1"]
    keys += ["TRAIN.CHECKPOINT_FILE_PATH", path, "TRAIN.CHECKPOINT_EPOCH_RESET", "True", "SOLVER.LAYER_DECAY", "0.8"]
    keys += ["SOLVER.LR_POLICY", "constant", "SOLVER.BASE_LR", "0", "SOLVER.WARMUP_EPOCHS", "0"]
    assert main(tiny_config("finetune", photo_folder, output, *keys)) == 0
    after = last_state(output)["model_state"]
    assert not any(name.startswith("head.norm") for name in after)
    for name in (n for n in before if n.startswith("backbone.")):
        assert torch.equal(after[name], before[name]) != name.endswith(("_mean", "_var", "_tracked")), name
