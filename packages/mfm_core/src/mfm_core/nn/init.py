"""The initialisation of masked autoencoders (official MAE, He et al. 2022): Xavier for what multiplies, zero elsewhere.

mmpretrain's MFF and MAE-priv start from the same distributions.
"""

from __future__ import annotations

import math

from torch import nn

TOKENS = ("cls_token", "mask_token")


def init_autoencoder(model: nn.Module) -> None:
    """Starts every linear layer, norm, patch projection and learned token of `model` anew, in place.

    Linear layers: Xavier uniform, biases zero. Norms: 1 and 0. The patch projection: Xavier as the linear layer that
    it is, its bias as torch starts convolutions. Class and mask token: normal, standard deviation 0.02. Position
    tables and what else there is (fusion weights) stay.
    """
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Conv3d)):
            nn.init.xavier_uniform_(module.weight.flatten(1))
            bound = 1 / math.sqrt(module.weight[0].numel())
            nn.init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
    for name, parameter in model.named_parameters():
        if name.rpartition(".")[2] in TOKENS:
            nn.init.normal_(parameter, std=0.02)
