"""A norm and a linear layer, one pair for each encoder depth that is predicted from: MaskFeat's head, and MFM's."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from mfm_core.nn.vit import init_weights, layer_norm


class SeparateHeads(nn.Module):
    """Module names are PySlowFast's (`transforms.i.0`, `projections.i`).

    embed_dim: width of the features of all `depths`, or a list with one for each. norm: False leaves the norm out.
    """

    def __init__(self, embed_dim: int | Sequence[int], target_dim: int, depths: int = 1, norm: bool = True) -> None:
        super().__init__()
        dims = [embed_dim] * depths if isinstance(embed_dim, int) else list(embed_dim)
        norms = ([layer_norm(dim)] if norm else [] for dim in dims)
        self.transforms = nn.ModuleList(nn.Sequential(*modules) for modules in norms)
        self.projections = nn.ModuleList(nn.Linear(dim, target_dim) for dim in dims)
        init_weights(self, bias=0.0)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """One (B, L, D) for each depth to one (B, L, target_dim) each."""
        return [
            projection(transform(x)) for x, transform, projection in zip(features, self.transforms, self.projections)
        ]
