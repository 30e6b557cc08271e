"""The plain formulations that `benchmark.py` measures against, written as the ancestors write them."""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from mfm_core.corruption.frequency import ClampedFilter
from mfm_core.losses.frequency import FrequencyDistance
from mfm_core.nn.attention import KeylessBiasAttention
from mfm_core.objective import CorruptedPrediction, MaskedPrediction, Pretraining
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


class PlainAttention(KeylessBiasAttention):
    """timm's attention with `plain_attention` inside; biases on the keys or not."""

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """(B, N, D) to (B, N, D)."""
        b, n, _ = x.shape
        q, k, v = self.project(x).reshape(b, n, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
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
    plain = with_plain_attention(model)
    plain.target = PlainHOGTarget(model.target.patch, model.target.bins, model.target.cell)
    return plain


def with_plain_attention(model: Pretraining) -> Pretraining:
    """A copy of a model, with the same weights; a ViT's attention is plain."""
    plain = copy.deepcopy(model)
    for block in getattr(plain.backbone, "blocks", ()):
        ours = block.attn
        split = isinstance(ours, KeylessBiasAttention) and ours.q_bias is not None
        block.attn = PlainAttention(ours.num_heads * ours.head_dim, ours.num_heads, qkv_bias=split)
        block.attn.qkv = ours.qkv
        block.attn.load_state_dict(ours.state_dict())
    return plain.to(next(model.parameters()).device)


class PlainFilter(ClampedFilter):
    """The same filter as MFM's code writes it: the spectrum is shifted there and back."""

    def forward(self, images: Tensor, mask: Tensor) -> Tensor:
        """(B, C, H, W) normalised, (B, H, W) True = hidden."""
        with torch.autocast(images.device.type, enabled=False):
            spectrum = torch.fft.fftshift(torch.fft.fft2(self.pixels(images)), dim=(-2, -1))
            spectrum = spectrum * (~mask[:, None]).float()
            images = torch.fft.ifft2(torch.fft.ifftshift(spectrum, dim=(-2, -1))).real
            return self.normalised(images.clamp(0, 1))


class PlainFrequencyDistance(FrequencyDistance):
    """The masked distance as MFM's code writes it: both spectra transformed, shifted, and split into two parts."""

    def __call__(self, prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """(B, L, D) tokens, (B, H, W) True = hidden."""
        first, second = (self._parts(self._images(tokens.float())) for tokens in (prediction, target))
        squared = (first - second) ** 2
        elements = torch.sqrt(squared[..., 0] + squared[..., 1] + self.variant.eps) ** self.variant.loss_gamma
        hidden = mask[:, None].float()
        return (elements * hidden).sum() / hidden.sum() / elements.shape[1]

    def _parts(self, images: Tensor) -> Tensor:
        spectrum = torch.fft.fftshift(torch.fft.fft2(images, norm="ortho"), dim=(-2, -1))
        return torch.stack([spectrum.real, spectrum.imag], dim=-1)


def plain_mfm_form(model: CorruptedPrediction) -> CorruptedPrediction:
    """A copy of an MFM model, with the same weights, through plain attention, the plain filter and the plain loss."""
    plain, ours = with_plain_attention(model), model.loss
    plain.corruption = PlainFilter(model.corruption.mean.flatten().tolist(), model.corruption.std.flatten().tolist())
    plain.loss = PlainFrequencyDistance(ours.grid, ours.patch, ours.reduction, ours.variant)
    return plain.to(next(model.parameters()).device)
