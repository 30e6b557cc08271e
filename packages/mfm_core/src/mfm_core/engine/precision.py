"""Which number format a run computes in."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch

from mfm_core.errors import UserError

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def computes_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 matrices natively (GPUs from Ampere on; CPUs with AVX-512 BF16 or AMX)."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.ops.mkldnn._is_mkldnn_bf16_supported() and torch.cpu._is_avx512_bf16_supported()


def choose_precision(choice: str, mixed_precision: bool, device: torch.device) -> str:
    """fp32 | bf16 | fp16 for `TRAIN.PRECISION` and `TRAIN.MIXED_PRECISION`. Raises UserError for fp16 on a CPU."""
    if choice == "auto":
        if computes_bf16(device):
            return "bf16"
        return "fp16" if mixed_precision and device.type == "cuda" else "fp32"
    if choice == "fp16" and device.type == "cpu":
        raise UserError("TRAIN.PRECISION fp16 needs a GPU; on a CPU take bf16, fp32 or auto.")
    return choice


def autocast_factory(precision: str, device: torch.device) -> Callable[[], AbstractContextManager]:
    """Makes the context that a forward pass runs in."""
    if precision == "fp32":
        return nullcontext
    return partial(torch.autocast, device.type, dtype=DTYPES[precision])
