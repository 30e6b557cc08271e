"""Attention alone, forward and backward: `mfm_core.nn.attention.attend` beside torch's SDPA and the plain form."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from benchmark_plain import plain_attention
from benchmark_timing import Row, median_times, threads_of
from torch import Tensor

from mfm_core.engine.precision import computes_bf16
from mfm_core.nn.attention import attend

SHAPES = ((8, 12, 197, 64), (64, 3, 65, 64), (8, 16, 785, 64))
"""(batch, heads, tokens, width of a head): ViT-B at 224 pixels, a small ViT at 64 pixels, ViT-L at 448 pixels."""

SIDES = {"plain": plain_attention, "SDPA": F.scaled_dot_product_attention, "ours": attend}
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
"""Largest difference between two sides, as a share of the largest number."""


def benchmark_attention(args: argparse.Namespace) -> Iterator[Row]:
    """One row per shape, number format and thread count; the plain column is the plain form in the same format."""
    device = torch.device(args.device)
    dtypes = [torch.float32, torch.bfloat16] if computes_bf16(device) else [torch.float32]
    for shape in args.attention_shapes or SHAPES:
        for dtype in dtypes:
            qkv, upstream = _inputs(shape, dtype, device)
            _check_equal(qkv, upstream)
            for threads in args.threads if device.type == "cpu" else [0]:
                with threads_of(threads or torch.get_num_threads()):
                    sides = {name: _round_trip(form, qkv, upstream) for name, form in SIDES.items()}
                    times = median_times(sides, args.repeats, device)
                case = f"{tuple(shape)}, {str(dtype).removeprefix('torch.')}"
                remark = f"SDPA {times['SDPA'] * 1e3:.2f} ms, {times['SDPA'] / times['ours']:.1f} times ours"
                yield Row("attention", case, threads, times["plain"], times["ours"], remark)


def _inputs(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """(B, N, 3, heads, D) as the linear layer of a block gives it, and a gradient for the output (B, heads, N, D)."""
    b, heads, n, d = shape
    torch.manual_seed(0)
    qkv = torch.randn(b, n, 3, heads, d, device=device).to(dtype).requires_grad_()
    return qkv, torch.randn(b, n, heads, d, device=device).to(dtype).transpose(1, 2)


def _round_trip(form: Callable[..., Tensor], qkv: Tensor, upstream: Tensor) -> Callable[[], tuple[Tensor, Tensor]]:
    """Forward and backward through `form` when called: output, and the gradient of `qkv`."""

    def run() -> tuple[Tensor, Tensor]:
        out = form(*qkv.permute(2, 0, 3, 1, 4).unbind(0))
        return out, torch.autograd.grad(out, qkv, upstream)[0]

    return run


def _check_equal(qkv: Tensor, upstream: Tensor) -> None:
    """Raises SystemExit where the sides do not compute the same outputs and gradients."""
    expected = _round_trip(plain_attention, qkv, upstream)()
    for name, form in SIDES.items():
        for what, got, wanted in zip(("outputs", "gradients"), _round_trip(form, qkv, upstream)(), expected):
            error = ((got - wanted).abs().max() / wanted.abs().max()).item()
            if not error <= TOLERANCE[qkv.dtype]:
                raise SystemExit(f"attention {tuple(qkv.shape)}, {qkv.dtype}: {what} of {name} are off by {error:.1e}")
