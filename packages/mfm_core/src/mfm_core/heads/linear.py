"""MaskFeat's prediction head: a norm and a linear layer, one pair for each encoder depth that is predicted from."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from mfm_core.nn.vit import init_weights, layer_norm


class SeparateHeads(nn.Module):
    """Module names are PySlowFast's (`transforms.i.0`, `projections.i`)."""

    def __init__(self, embed_dim: int, target_dim: int, depths: int = 1) -> None:
        super().__init__()
        self.transforms = nn.ModuleList(nn.Sequential(layer_norm(embed_dim)) for _ in range(depths))
        self.projections = nn.ModuleList(nn.Linear(embed_dim, target_dim) for _ in range(depths))
        init_weights(self, bias=0.0)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """One (B, L, D) for each depth to one (B, L, target_dim) each."""
        return [
            projection(transform(x)) for x, transform, projection in zip(features, self.transforms, self.projections)
        ]
