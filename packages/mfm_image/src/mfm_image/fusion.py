"""The fusion neck of MFF: shallow layers, each through its own linear layer, mixed into the last by learned weights.

Liu et al. 2023, "Improving Pixel-based MIM by Reducing Wasted Modeling Capability", as mmpretrain has it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mfm_core.monitor.settings import setting_name
from mfm_core.nn.init import init_autoencoder


class LayerFusion(nn.Module):
    """Joins the outputs of `earlier` blocks and of the last; class tokens are fused as all others.

    The weights start equal. They are a parameter of four dimensions, as in mmpretrain, and have weight decay.
    """

    def __init__(self, dim: int, earlier: int) -> None:
        super().__init__()
        self.proj_layers = nn.ModuleList(nn.Linear(dim, dim) for _ in range(earlier))
        self.proj_weights = nn.Parameter(torch.ones(earlier + 1, 1, 1, 1))
        init_autoencoder(self)

    def weights(self) -> Tensor:
        """The share of each layer, (earlier + 1, 1, 1, 1); they sum to one."""
        return self.proj_weights.softmax(dim=0)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """One (B, N, D) for each layer, the last one last, to (B, N, D); no norm has been applied to any."""
        *earlier, last = features
        projected = [layer(x) for layer, x in zip(self.proj_layers, earlier, strict=True)]
        return sum(weight * x for weight, x in zip(self.weights(), [*projected, last]))

    @torch.no_grad()
    def metrics(self) -> dict[str, Tensor]:
        """The weights, for the log."""
        return {setting_name("fusion_weight", "layer", i): weight for i, weight in enumerate(self.weights().flatten())}
