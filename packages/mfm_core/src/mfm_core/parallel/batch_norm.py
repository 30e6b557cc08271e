"""BatchNorm over the inputs of all processes: training is then that of one process with the whole batch.

Each process else normalises its own inputs, as in the published recipes, and the fewer these are the more their number
matters. On GPUs it is torch's SyncBatchNorm, which has no CPU form; on CPUs the same in plain operations.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mfm_core.parallel.world import World

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def synchronise_norms(model: nn.Module, world: World) -> None:
    """Has the model's BatchNorms see all processes' inputs in training, in place.

    Parameters and buffers stay the same tensors under the same names. All processes then call the model alike.
    """
    if world.size == 1:
        return
    shared = nn.SyncBatchNorm.convert_sync_batchnorm if world.device.type == "cuda" else _SharedNorm.of
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child) in NORMS:
                setattr(parent, name, shared(child))


class _Sum(torch.autograd.Function):
    """The sum over all processes, of whose losses each gets its part of the gradient."""

    @staticmethod
    def forward(ctx, own: Tensor) -> Tensor:
        total = own.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return _Sum.apply(gradient.contiguous())


class _SharedNorm(nn.modules.batchnorm._BatchNorm):
    """The tensors of another BatchNorm, and statistics over all processes while training."""

    @classmethod
    def of(cls, norm: nn.Module) -> _SharedNorm:
        shared = cls(norm.num_features, norm.eps, norm.momentum, affine=False, track_running_stats=False)
        for name in ("affine", "track_running_stats", "training", "weight", "bias"):
            setattr(shared, name, getattr(norm, name))
        for name, buffer in norm.named_buffers():
            shared.register_buffer(name, buffer)
        return shared

    def _check_input_dim(self, input: Tensor) -> None:
        pass  # of any number of dimensions from 2 on: (B, C, *size)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *size), of any type, to the same; sums are taken in float32."""
        if not self.training:
            return super().forward(x)
        dims = [0, *range(2, x.ndim)]
        shape = [1, -1, *[1] * (x.ndim - 2)]
        values = x.float()
        own = torch.full((1,), float(values.numel() // values.shape[1]), device=x.device)
        total = _Sum.apply(torch.cat([values.sum(dims), own]))
        count, mean = total[-1].detach(), total[:-1] / total[-1].detach()
        centred = values - mean.view(shape)
        variance = _Sum.apply(centred.square().sum(dims)) / count
        self._learn(mean.detach(), variance.detach(), count)
        normed = centred * torch.rsqrt(variance + self.eps).view(shape)
        if self.affine:
            normed = torch.addcmul(self.bias.view(shape).float(), normed, self.weight.view(shape).float())
        return normed.to(x.dtype)

    def _learn(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        if not self.track_running_stats:
            return
        self.num_batches_tracked += 1
        share = self.momentum if self.momentum is not None else 1.0 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_((variance * count / (count - 1)).to(self.running_var.dtype), share)
