"""Depthwise 3-D convolution with a backward pass that is fast on CPUs.

oneDNN, which computes torch's convolutions on CPUs, has kernels for depthwise ones in three dimensions forwards only.
Backwards it takes its general kernels for groups, many times slower (`tools/benchmark.py --only pooling`). But the
gradient of the input is a convolution forwards: of the output's gradient with the mirrored kernel. And the gradient of
the weight is one of two dimensions for each of the kernel's frames, for which oneDNN has depthwise kernels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from mfm_core.interfaces import Grid

LAST = torch.channels_last_3d


class DepthwiseConv3d(nn.Conv3d):
    """`nn.Conv3d` with a kernel for each channel and no bias: parameters and numbers are the same.

    On CPUs it computes in the number format of its input, under autocast too, and cannot be differentiated twice.
    """

    def __init__(self, dim: int, kernel: Grid, stride: Grid, padding: Grid) -> None:
        super().__init__(dim, dim, kernel, stride, padding, groups=dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, dim, T, H, W) to (B, dim, T', H', W'), which lies in memory as (B, T', H', W', dim) on a CPU."""
        if x.device.type != "cpu":
            return super().forward(x)
        return _Depthwise.apply(x, self.weight.to(x.dtype), self.stride, self.padding)


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor, stride: Grid, padding: Grid) -> Tensor:
        x = x.contiguous(memory_format=LAST)
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return _convolve(x, weight, stride, padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=LAST)
        wants_x, wants_weight = ctx.needs_input_grad[:2]
        return (
            input_gradient(gradient, weight, x.shape[2:], ctx.stride, ctx.padding) if wants_x else None,
            weight_gradient(gradient, x, weight, ctx.stride, ctx.padding) if wants_weight else None,
            None,
            None,
        )


def input_gradient(gradient: Tensor, weight: Tensor, size: Grid, stride: Grid, padding: Grid) -> Tensor:
    """Of an input of `size`: the output's gradient, zeros between its numbers, convolved with the mirrored kernel."""
    kernel = weight.shape[2:]
    if any(s > 1 for s in stride):
        spread = [n + 2 * p - k + 1 for n, p, k in zip(size, padding, kernel)]
        zeros = _zeros(gradient, spread)
        zeros[(..., *(slice(None, None, s) for s in stride))] = gradient
        gradient = zeros
    margin = [k - 1 - p for k, p in zip(kernel, padding)]
    return _convolve(gradient, weight.flip(2, 3, 4), (1, 1, 1), margin)


def weight_gradient(gradient: Tensor, x: Tensor, weight: Tensor, stride: Grid, padding: Grid) -> Tensor:
    """Of the weight, (dim, 1, *kernel): for each of the kernel's frames from pairs of input and output frames.

    The output's gradient is laid out anew for each, so that its frames are beside those of the input, which is larger.
    """
    if gradient.element_size() < 4 and any(s > 1 for s in stride):  # bfloat16 has no fast kernel for strides
        gradient, x, weight = gradient.float(), x.float(), weight.float()
    step, frames, parts = stride[0], x.shape[2], []
    for i in range(weight.shape[2]):
        shift = i - padding[0]  # output frame t is beside input frame t * step + shift
        first = max(0, -(shift // step))
        last = max(first, min(gradient.shape[2], -((shift - frames) // step)))
        beside = gradient
        if (step, shift) != (1, 0) or gradient.shape[2] != frames:
            beside = _zeros(gradient, (frames, *gradient.shape[3:]))
            beside[:, :, first * step + shift :: step][:, :, : last - first] = gradient[:, :, first:last]
        parts.append(_plane_gradient(beside, x, weight[:, :, i], stride[1:], padding[1:]))
    return torch.stack(parts, dim=2)


def _plane_gradient(gradient: Tensor, x: Tensor, weight: Tensor, stride: Grid, padding: Grid) -> Tensor:
    """Of a kernel (dim, 1, h, w) that frame by frame makes (B, dim, T, H', W') from (B, dim, T, H, W)."""
    gradient, x = (frames.transpose(1, 2).flatten(0, 1) for frames in (gradient, x))
    _, of_weight, _ = torch.ops.aten.convolution_backward(
        gradient, x, weight, None, stride, padding, (1, 1), False, (0, 0), len(weight), (False, True, False)
    )
    return of_weight


def _convolve(x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int]) -> Tensor:
    """Below autocast, which would round what comes in another format."""
    return torch.convolution(x, weight, None, stride, padding, (1, 1, 1), False, (0, 0, 0), len(weight))


def _zeros(like: Tensor, size: Sequence[int]) -> Tensor:
    """(B, dim, *size), channels last in memory."""
    return like.new_zeros((len(like), *size, like.shape[1])).movedim(-1, 1)
