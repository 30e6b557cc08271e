"""Spectra as pictures, and images put together from the frequencies of two.

Spectra lie as after fftshift: frequency zero is at (H // 2, W // 2), the highest are at the border.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mfm_core.report.heat import heat

_DECADES = 3.0
"""How far below its reference's strongest frequency a panel still shows differences."""


def log_amplitude(images: Tensor) -> Tensor:
    """The decimal logarithm of the amplitude, mean over the channels of (B, C, H, W), shifted: (B, H, W)."""
    amplitude = torch.fft.fft2(images.float(), norm="ortho").abs().mean(dim=1)
    return torch.fft.fftshift(amplitude, dim=(-2, -1)).clamp_min(1e-8).log10()


def spectrum_panel(amplitude: Tensor, reference: Tensor) -> np.ndarray:
    """A `log_amplitude` (H, W) in colours, (H, W, 3) uint8.

    The brightest is the strongest frequency of `reference` (H, W) but for its mean, the darkest what is a thousand
    times weaker; panels with the same reference can be compared.
    """
    h, w = reference.shape
    others = torch.ones(h, w, dtype=torch.bool, device=reference.device)
    others[h // 2, w // 2] = h * w == 1
    top = float(reference[others].max())
    return heat(((amplitude - top) / _DECADES + 1).detach().cpu().numpy())


def join_frequencies(inside: Tensor, outside: Tensor, mask: Tensor) -> Tensor:
    """Images (B, C, H, W) with the frequencies of `inside` where `mask` (B, H, W) is True, of `outside` elsewhere."""
    one, other = (torch.fft.fftshift(torch.fft.fft2(x.float()), dim=(-2, -1)) for x in (inside, outside))
    joined = torch.where(mask[:, None], one, other)
    return torch.fft.ifft2(torch.fft.ifftshift(joined, dim=(-2, -1))).real
