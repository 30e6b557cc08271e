"""The classification read-out: mean over tokens or class token, norm, dropout, linear layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mfm_core.nn.vit import init_weights, layer_norm


class ReadOut(nn.Module):
    """Three ways from tokens to one vector, as PySlowFast has them.

    mean_pooling: the mean over the patch tokens, then the norm. Otherwise the norm, then the class token, or the mean
    where the encoder has none. fresh_norm: the norm starts afresh even where it stands where a pre-trained encoder had
    its own (MAE-priv's class token).
    """

    def __init__(self, norm: nn.Module, num_prefix_tokens: int, mean_pooling: bool, fresh_norm: bool = False) -> None:
        super().__init__()
        self.num_prefix_tokens, self.mean_pooling, self.fresh_norm = num_prefix_tokens, mean_pooling, fresh_norm
        self.norm = norm

    @property
    def norm_role(self) -> str:
        """What the norm stands for when weights of others are loaded: pooled | tokens | "" (nothing of theirs).

        pooled: a norm behind the mean, which pre-trained encoders have not. tokens: the encoder's final norm.
        """
        if self.mean_pooling:
            return "pooled"
        return "" if self.fresh_norm else "tokens"

    def features(self, tokens: Tensor) -> Tensor:
        """(B, prefix + L, D) to (B, D)."""
        if self.mean_pooling:
            return self.norm(tokens[:, self.num_prefix_tokens :].mean(dim=1))
        tokens = self.norm(tokens)
        return tokens[:, 0] if self.num_prefix_tokens else tokens.mean(dim=1)

    def forward(self, tokens: Tensor) -> Tensor:
        """As `features`."""
        return self.features(tokens)


class ClassificationHead(ReadOut):
    """A read-out, dropout and a linear layer.

    norm: False leaves the read-out's norm out, for encoders that have their own (ResNets). The linear layer starts
    truncated normal with init_std, its bias and the norm's constant; with an init_std of 0 as torch starts it.
    init_scale then multiplies it. norm_bias: the norm's where it is another. PySlowFast's start is the default, MAE's
    is (2e-5, 0).
    """

    def __init__(
        self,
        embed_dim: int,
        num_classes: int,
        num_prefix_tokens: int,
        mean_pooling: bool,
        dropout: float = 0.0,
        init_scale: float = 1.0,
        norm: bool = True,
        fresh_norm: bool = False,
        init_std: float = 0.02,
        init_bias: float = 0.02,
        norm_bias: float | None = None,
    ) -> None:
        super().__init__(layer_norm(embed_dim) if norm else nn.Identity(), num_prefix_tokens, mean_pooling, fresh_norm)
        self.dropout = nn.Dropout(dropout)
        self.projection = nn.Linear(embed_dim, num_classes)
        init_weights(self, bias=init_bias, std=init_std or 1.0)
        if init_std == 0:
            self.projection.reset_parameters()
        if norm and norm_bias is not None:
            nn.init.constant_(self.norm.bias, norm_bias)
        with torch.no_grad():
            self.projection.weight.mul_(init_scale)
            self.projection.bias.mul_(init_scale)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, prefix + L, D) to logits (B, classes)."""
        return self.projection(self.dropout(self.features(tokens)))
