"""What the encoder sees in place of hidden tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class MaskToken(nn.Module):
    """Replaces hidden patch tokens by one learned vector, before positions are added (BEiT, MaskFeat)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """tokens: (B, L, D); mask: (B, L) bool, True = hidden."""
        return torch.where(mask[..., None], self.mask_token.to(tokens.dtype), tokens)
