"""Whether frozen features are alive: their spread and effective rank, two signs of collapse that need no labels."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def feature_health(features: Tensor) -> dict[str, float]:
    """Spread and effective rank of `features` (N, D), one row per image.

    `feature_std`: the standard deviation of each dimension over the rows after L2 normalisation, averaged and times
    sqrt(D): about 1 for features spread evenly over the sphere, 0 when all rows are alike (Chen and He 2021, SimSiam,
    section 4.1). `feature_rank`: RankMe (Garrido et al. 2023, eq. 1), exp of the entropy of the singular values
    divided by their sum, of the rows as they are: from 1 to min(N, D).
    Both are NaN for no rows or for features that are not finite.
    """
    if features.ndim != 2:
        raise ValueError(f"features must be (N, D), not {tuple(features.shape)}")
    features = features.detach()
    if features.numel() == 0 or not bool(features.isfinite().all()):
        return {"feature_std": math.nan, "feature_rank": math.nan}
    spread = F.normalize(features.float(), dim=1).std(dim=0, unbiased=False).mean() * math.sqrt(features.shape[1])
    return {"feature_std": float(spread), "feature_rank": rank_me(features)}


def rank_me(features: Tensor) -> float:
    """RankMe of `features` (N, D), finite; 0 where all are zero.

    The singular values come from the smaller Gram matrix in float64 on the CPU: a (D, D) eigenproblem instead of an
    (N, D) decomposition, exact to about 1e-8 of the largest, which the entropy does not see.
    """
    x = features.detach().double().cpu()
    gram = x.T @ x if x.shape[0] >= x.shape[1] else x @ x.T
    singular = torch.linalg.eigvalsh(gram).clamp_min(0).sqrt()
    total = singular.sum()
    if total == 0:
        return 0.0
    share = singular / total
    return float(torch.special.entr(share).sum().exp())
