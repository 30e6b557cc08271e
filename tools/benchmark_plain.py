"""The plain formulations that `benchmark.py` measures against, written as the ancestors write them."""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from timm.layers import Attention
from torch import Tensor

from mfm_core.objective import MaskedPrediction
from mfm_core.targets.hog import HOGTarget, group


@torch.no_grad()
def plain_hog(images: Tensor, bins: int = 9, cell: int = 8) -> Tensor:
    """HOG as PySlowFast's layer computes it: (N, C, H, W) float32 to (N, C, bins, H / cell, W / cell).

    Two filter passes, then every magnitude scattered into a bin volume at full resolution (`bins` times the size of
    the images), then the volume unfolded into cells and summed.
    """
    n, channels, height, width = images.shape
    sobel_x = torch.tensor([[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]], device=images.device)
    filter_x = sobel_x.view(1, 1, 3, 3).repeat(channels, 1, 1, 1)
    padded = F.pad(images, (1, 1, 1, 1), mode="reflect")
    gx = F.conv2d(padded, filter_x, groups=channels)
    gy = F.conv2d(padded, filter_x.transpose(2, 3).contiguous(), groups=channels)
    magnitude = torch.stack([gx, gy], dim=-1).norm(dim=-1)
    orientation = (torch.atan2(gx, gy) / math.pi * bins).floor().long() % bins
    volume = torch.zeros(n, channels, bins, height, width, device=images.device)
    volume.scatter_add_(2, orientation.unsqueeze(2), magnitude.unsqueeze(2))
    cells = volume.unfold(3, cell, cell).unfold(4, cell, cell).sum(dim=(-1, -2))
    return F.normalize(cells, p=2, dim=2)


def plain_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(D)) v, written out; all (B, heads, N, D)."""
    weights = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    return weights.softmax(dim=-1) @ v


class PlainAttention(Attention):
    """timm's attention with `plain_attention` inside."""

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """(B, N, D) to (B, N, D)."""
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(plain_attention(q, k, v).transpose(1, 2).reshape(b, n, -1))


class PlainHOGTarget(HOGTarget):
    """The same target through `plain_hog`."""

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """(B, C, H, W) to (B, L, dim) float32."""
        with torch.autocast(images.device.type, enabled=False):
            return group(plain_hog(images, self.bins, self.cell)[:, None], self.per_token)


def plain_form(model: MaskedPrediction) -> MaskedPrediction:
    """A copy of a MaskFeat model, with the same weights, through plain attention and the plain HOG."""
    plain = copy.deepcopy(model)
    for block in plain.backbone.blocks:
        ours = block.attn
        block.attn = PlainAttention(ours.num_heads * ours.head_dim, ours.num_heads, qkv_bias=ours.qkv.bias is not None)
        block.attn.load_state_dict(ours.state_dict())
    plain.target = PlainHOGTarget(model.target.patch, model.target.bins, model.target.cell)
    return plain.to(next(model.parameters()).device)
