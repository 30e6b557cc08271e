"""The head of a linear probe: fixed read-out, BatchNorm without affine, one linear layer for each learning rate.

The protocol of MoCo v3 and MAE (Chen et al. 2021; He et al. 2022, appendix A): features are normalised per dimension,
so that one learning rate fits encoders whose features differ in scale.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from mfm_core.heads.classification import ReadOut


class FeatureNorm(nn.BatchNorm1d):
    """BatchNorm1d without affine for frozen features, which need no gradient.

    The statistics are those of the batches of all processes together, so that their number does not matter; a batch
    that is not finite leaves the running ones alone (its step does not reach the weights either), and so does a single
    input.
    """

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__(dim, eps=eps, momentum=0.1, affine=False)
        self.sum_over_processes: Callable[[Tensor], Tensor] = torch.clone
        """Sums a tensor over all processes; whoever knows of several sets it."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, D) float32 to (B, D)."""
        return super().forward(x) if not self.training else self._normalise_and_learn(x)

    @torch.no_grad()
    def _normalise_and_learn(self, x: Tensor) -> Tensor:
        count = self.sum_over_processes(torch.full((), float(len(x)), device=x.device))
        mean = self.sum_over_processes(x.sum(dim=0)) / count
        var = self.sum_over_processes((x - mean).square().sum(dim=0)) / count
        finite = torch.isfinite(mean).all() & torch.isfinite(var).all() & (count > 1)
        for running, new in ((self.running_mean, mean), (self.running_var, var * count / (count - 1))):
            running.copy_(torch.where(finite, running.lerp(new, self.momentum), running))
        self.num_batches_tracked += finite
        return (x - mean) * torch.rsqrt(var + self.eps)


class ProbeHead(ReadOut):
    """Linear classifiers that see the same features, each with a learning rate of its own; they start alike.

    Args:
        embed_dim, num_classes: of the features, and of the logits.
        num_prefix_tokens, mean_pooling: see `ReadOut`.
        norm: the read-out's, fixed; nn.Identity() for none.
        batch_norm_eps: of the BatchNorm before the linear layers; None for no BatchNorm.
        lr_scales: one linear layer for each; what multiplies its learning rate.
    """

    def __init__(
        self,
        embed_dim: int,
        num_classes: int,
        num_prefix_tokens: int,
        mean_pooling: bool,
        norm: nn.Module,
        batch_norm_eps: float | None = 1e-6,
        lr_scales: Sequence[float] = (1.0,),
    ) -> None:
        super().__init__(norm, num_prefix_tokens, mean_pooling)
        self.batch_norm = nn.Identity() if batch_norm_eps is None else FeatureNorm(embed_dim, batch_norm_eps)
        self.lr_scales = tuple(lr_scales)
        first = nn.Linear(embed_dim, num_classes)
        nn.init.trunc_normal_(first.weight, std=0.01)
        nn.init.zeros_(first.bias)
        self.probes = nn.ModuleList([first, *(copy.deepcopy(first) for _ in self.lr_scales[1:])])

    def features(self, tokens: Tensor) -> Tensor:
        """(B, prefix + L, D) to (B, D) float32."""
        return super().features(tokens.float()).float()

    def forward(self, features: Tensor) -> Tensor:
        """(B, D) to logits (heads, B, classes), in float32 also under autocast."""
        with torch.autocast("cpu" if features.is_meta else features.device.type, enabled=False):
            features = self.batch_norm(features.float())
            return torch.stack([probe(features) for probe in self.probes])

    def lr_scale(self, name: str) -> float:
        """The scale for a parameter of this head: `probes.2.weight` has that of the third linear layer."""
        return self.lr_scales[int(name.split(".")[1])] if name.startswith("probes.") else 1.0
