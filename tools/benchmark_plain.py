"""The plain formulations that `benchmark.py` measures against, written as the ancestors write them."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


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
