"""What only a GPU can show; skipped where there is none."""

from __future__ import annotations

import pytest
import torch
from tiny_runs import assert_same, last_state, tiny_config

from mfm_core.targets.hog import HOGTarget, fused_kernel
from mfm_image.entry import main

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
GPU = ["DEVICE", "cuda"]


def test_fused_hog_equals_the_cpu():
    images = torch.randint(0, 64, (4, 3, 64, 64), generator=torch.Generator().manual_seed(0)).float() / 64
    assert fused_kernel() is not None
    for window in (0, 16):
        target = HOGTarget((16, 16), gaussian_window=window)
        torch.testing.assert_close(target(images.cuda()).cpu(), target(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("kind", ["pretrain", "finetune"])
def test_every_precision_trains_and_resumes(kind, precision, photo_folder, tmp_path):
    overrides = [*GPU, "TRAIN.PRECISION", precision, "TRAIN.EMA_DECAY", "0.9", "KNN.PERIOD", "1"]
    overrides = overrides if kind == "pretrain" else overrides[:-2]
    assert main(tiny_config(kind, photo_folder, tmp_path / "whole", *overrides)) == 0
    for stop in (2, None):
        more = ["TRAIN.STOP_STEP", str(stop)] if stop else []
        assert main(tiny_config(kind, photo_folder, tmp_path / "run", *overrides, *more)) == 0
    assert_same(last_state(tmp_path / "whole"), last_state(tmp_path / "run"), atol=1e-4)


def test_compiled(photo_folder, tmp_path):
    overrides = [*GPU, "TRAIN.PRECISION", "fp32"]
    assert main(tiny_config("pretrain", photo_folder, tmp_path / "eager", *overrides)) == 0
    assert main(tiny_config("pretrain", photo_folder, tmp_path / "compiled", *overrides, "TRAIN.COMPILE", "True")) == 0
    assert_same(last_state(tmp_path / "eager"), last_state(tmp_path / "compiled"), atol=1e-3)
