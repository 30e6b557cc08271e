"""Depthwise 3-D convolutions: output and gradients are those of torch's own, in every shape that pooling can take."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mfm_video.backbones.depthwise import DepthwiseConv3d, weight_gradient
from mfm_video.backbones.stages import Pooling

CASES = {
    "as it is": (2, (4, 8, 8), (3, 3, 3), (1, 1, 1)),
    "one clip": (1, (4, 7, 5), (3, 3, 3), (1, 1, 1)),
    "strides in space": (2, (4, 9, 8), (3, 3, 3), (1, 2, 2)),
    "strides beyond the kernel": (3, (4, 19, 16), (3, 3, 3), (1, 8, 8)),
    "strides in time": (2, (7, 8, 6), (3, 3, 3), (2, 4, 2)),
    "strides in time beyond the kernel": (2, (11, 6, 6), (3, 3, 3), (5, 1, 1)),
    "one frame": (2, (1, 8, 8), (3, 3, 3), (1, 2, 2)),
    "two frames": (2, (2, 4, 4), (7, 3, 3), (1, 1, 1)),
    "even kernel": (2, (4, 8, 8), (2, 4, 2), (1, 1, 1)),
    "even kernel and strides": (2, (5, 8, 9), (2, 2, 4), (2, 2, 2)),
    "no extent in time": (2, (4, 8, 8), (1, 3, 3), (1, 2, 2)),
    "a point": (2, (4, 4, 4), (1, 1, 1), (2, 2, 2)),
    "uneven": (2, (6, 10, 7), (5, 3, 1), (3, 2, 1)),
}


def layers(case: str, dtype: torch.dtype, layout: torch.memory_format = torch.channels_last_3d):
    """Ours and torch's with the same weights, an input, and a gradient for the output."""
    batch, size, kernel, stride = CASES[case]
    padding = Pooling(kernel, stride).padding
    generator = torch.Generator().manual_seed(0)
    ours = DepthwiseConv3d(16, kernel, stride, padding).to(dtype)
    with torch.no_grad():
        ours.weight.copy_(torch.randn(ours.weight.shape, generator=generator))
    theirs = nn.Conv3d(16, 16, kernel, stride, padding, groups=16, bias=False).to(dtype)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(batch, 16, *size, generator=generator).to(dtype).contiguous(memory_format=layout)
    upstream = torch.randn(theirs(x).shape, generator=generator).to(dtype)
    return ours, theirs, x.requires_grad_(), upstream


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", CASES)
def test_equals_torchs(case, dtype):
    ours, theirs, x, upstream = layers(case, dtype)
    results = []
    for layer in (ours, theirs):
        out = layer(x)
        results.append([out, *torch.autograd.grad(out, (x, layer.weight), upstream)])
    for got, wanted in zip(*results):
        assert got.dtype == dtype
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5 if dtype == torch.float32 else 1e-12)


@pytest.mark.parametrize("case", CASES)
def test_bf16_autocast(case):
    """The input's number format decides; the gradients are as close to exact ones as rounding allows."""
    ours, theirs, x, upstream = layers(case, torch.float32)
    exact = torch.autograd.grad(theirs(x), (x, theirs.weight), upstream)
    rounded = x.detach().bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = ours(rounded)
        assert ours(x).dtype == torch.float32
    assert out.dtype == torch.bfloat16
    gradients = torch.autograd.grad(out, (rounded, ours.weight), upstream.bfloat16())
    assert [g.dtype for g in gradients] == [torch.bfloat16, torch.float32]
    for got, wanted in zip(gradients, exact):
        assert float((got.float() - wanted).norm() / wanted.norm()) < 0.01


def test_any_layout():
    """Slices of a wider tensor, as queries are of queries, keys and values; and memory as torch has it by default."""
    ours, theirs, x, upstream = layers("strides in space", torch.float32, torch.contiguous_format)
    wide = torch.randn(2, 4, 9, 8, 48, generator=torch.Generator().manual_seed(1))
    for view in (x, wide[..., 16:32].permute(0, 4, 1, 2, 3).requires_grad_()):
        for upstreams in (upstream, upstream.expand(2, *upstream.shape)[1].flip(0).flip(0)):
            got, wanted = (torch.autograd.grad(layer(view), view, upstreams)[0] for layer in (ours, theirs))
            torch.testing.assert_close(got, wanted)
    tokens_last = ours(x).permute(0, 2, 3, 4, 1)
    assert tokens_last.is_contiguous()


def test_gradient_of_one_of_both():
    ours, _, x, upstream = layers("as it is", torch.float32)
    for wanted in (x, ours.weight):
        x.requires_grad_(wanted is x)
        ours.weight.requires_grad_(wanted is not x)
        assert torch.autograd.grad(ours(x), wanted, upstream)[0].shape == wanted.shape


def test_frames_out_of_reach_have_no_gradient():
    """Of a kernel of seven frames, only the three in the middle connect two frames with one another."""
    ours, _, x, upstream = layers("two frames", torch.float32)
    gradient = weight_gradient(upstream, x.detach(), ours.weight.detach(), ours.stride, ours.padding)
    assert gradient.abs().amax(dim=(0, 1, 3, 4)).gt(0).tolist() == [False, False, True, True, True, False, False]


def test_other_devices_take_torchs_own(monkeypatch):
    layer = DepthwiseConv3d(16, (3, 3, 3), (1, 2, 2), (1, 1, 1)).to("meta")
    seen = []
    monkeypatch.setattr(nn.Conv3d, "forward", lambda self, x: seen.append(x) or x)
    layer(torch.empty(1, 16, 2, 4, 4, device="meta"))
    assert len(seen) == 1
