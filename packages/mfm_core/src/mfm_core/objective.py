"""The two models that are trained: masked prediction, and classification.

Here mask, corruption, backbone, head, target and loss are put in a row, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from mfm_core.interfaces import Backbone, PretrainOutput, Target


class EncoderModel(nn.Module):
    """A backbone and what stands on it; answers for its parameter groups by name."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def layer_of(self, name: str) -> int:
        """The depth of a parameter: the backbone's own answer, 0 for the mask token, else the head's layer."""
        if name.startswith("backbone."):
            return self.backbone.layer_of(name.removeprefix("backbone."))
        return 0 if name.startswith("corruption.") else self.num_layers

    @property
    def num_layers(self) -> int:
        """The layer of the head."""
        return self.backbone.num_layers

    def no_weight_decay(self) -> set[str]:
        """The names of class token and positions."""
        return {f"backbone.{name}" for name in self.backbone.no_weight_decay()}

    def features(self, images: Tensor) -> Tensor:
        """Frozen-feature read-out, (B, D) float32."""
        return self.backbone.features(images)


class MaskedPrediction(EncoderModel):
    """Predicts a feature of the hidden tokens from an encoder that sees all tokens (MaskFeat, Wei et al. 2022).

    corruption: (tokens, mask) -> tokens. head: features of each depth -> predictions. loss: (prediction, target,
    mask) -> scalar; the losses of several depths add up (PySlowFast's multi_mse), the last depth's prediction is shown.
    """

    def __init__(
        self,
        backbone: Backbone,
        corruption: nn.Module,
        head: nn.Module,
        target: Target,
        loss: Callable[[Tensor, Tensor, Tensor], Tensor],
        depths: Sequence[int],
    ) -> None:
        super().__init__(backbone)
        self.corruption, self.head, self.target, self.loss = corruption, head, target, loss
        self.depths = tuple(depths)

    def forward(self, images: Tensor, mask: Tensor) -> PretrainOutput:
        """images: (B, C, *size). mask: (B, *grid) bool, True = hidden."""
        mask = mask.flatten(1)
        with torch.no_grad():
            target = self.target(images)
        tokens = self.corruption(self.backbone.embed(images), mask)
        features = self.backbone.encode(tokens, self.depths)
        predictions = self.head([x[:, self.backbone.num_prefix_tokens :] for x in features])
        loss = sum(self.loss(p, target, mask) for p in predictions)
        return PretrainOutput(loss, predictions[-1].float(), target, mask)


class Classifier(EncoderModel):
    """A backbone and a classification head on its last block."""

    def __init__(self, backbone: Backbone, head: nn.Module) -> None:
        super().__init__(backbone)
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, *size) to logits (B, classes)."""
        return self.head(self.encode(images))

    def encode(self, images: Tensor) -> Tensor:
        """The last block's tokens, (B, prefix + L, D)."""
        return self.backbone.encode(self.backbone.embed(images), [self.backbone.depth - 1])[0]
