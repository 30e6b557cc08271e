"""The models: three ways to predict what is hidden, classification, and probes of a frozen encoder.

Here mask, corruption, backbone, head, target and loss are put in a row, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mfm_core.heads.probe import ProbeHead
from mfm_core.interfaces import Backbone, Loss, PretrainOutput, Target
from mfm_core.masking.enlarged import enlarge


class EncoderModel(nn.Module):
    """A backbone and what stands on it; answers for its parameter groups by name."""

    optional: frozenset[str] = frozenset()
    """Tensors that a checkpoint may lack where this model is tested."""

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

    def lr_scale(self, name: str) -> float:
        """What multiplies the learning rate of a parameter, beside layer decay."""
        return 1.0

    def no_weight_decay(self) -> set[str]:
        """The names of class token and positions."""
        return {f"backbone.{name}" for name in self.backbone.no_weight_decay()}

    def features(self, images: Tensor) -> Tensor:
        """Frozen-feature read-out, (B, D) float32."""
        return self.backbone.features(images)


class Pretraining(EncoderModel):
    """What the pre-training methods have in common: a head, a target without gradient, and a loss between them."""

    def __init__(self, backbone: Backbone, head: nn.Module, target: Target, loss: Loss) -> None:
        super().__init__(backbone)
        self.head, self.target, self.loss = head, target, loss

    def weight(self, mask: Tensor) -> Tensor:
        """How many terms the loss under this mask averages over."""
        return self.loss.weight(self.flat(mask))

    def flat(self, mask: Tensor) -> Tensor:
        """The mask as the loss takes it: over tokens, (B, *grid) to (B, L)."""
        return mask.flatten(1)

    def metrics(self) -> dict[str, Tensor]:
        """Scalars that belong on every log line (MFF's fusion weights, say)."""
        return {}


class MaskedPrediction(Pretraining):
    """Predicts the hidden tokens from an encoder that sees all of them, hidden ones as a mask token.

    MaskFeat (Wei et al. 2022). corruption: (tokens, mask) -> tokens, over the grid of the patch embedding, for which
    the mask is enlarged where later blocks pool. head: features of each depth -> predictions; the losses of several
    depths, of one grid, add up (PySlowFast's multi_mse), the last depth's prediction is shown.
    """

    def __init__(
        self,
        backbone: Backbone,
        corruption: nn.Module,
        head: nn.Module,
        target: Target,
        loss: Loss,
        depths: Sequence[int],
    ) -> None:
        super().__init__(backbone, head, target, loss)
        self.corruption, self.depths = corruption, tuple(depths)

    def forward(self, images: Tensor, mask: Tensor) -> PretrainOutput:
        """images: (B, C, *size). mask: (B, *grid) bool, True = hidden."""
        hidden = self.flat(enlarge(mask, self.backbone.embed_grid))
        mask = self.flat(mask)
        with torch.no_grad():
            target = self.target(images)
        tokens = self.corruption(self.backbone.embed(images), hidden)
        features = self.backbone.encode(tokens, self.depths)
        predictions = self.head([x[:, self.backbone.num_prefix_tokens :] for x in features])
        loss = sum(self.loss(p, target, mask) for p in predictions)
        return PretrainOutput(loss, predictions[-1].float(), target, mask)


class MaskedAutoencoder(Pretraining):
    """Predicts the hidden tokens from an encoder that sees the others only (MAE, He et al. 2022).

    num_visible: tokens of each image that are not hidden, the same for all. depths: blocks whose outputs the `neck`
    joins into one (MFF); without a neck the last block's goes to the decoder. head: (encoded, keep) -> (B, L, D).
    """

    def __init__(
        self,
        backbone: Backbone,
        head: nn.Module,
        target: Target,
        loss: Loss,
        num_visible: int,
        depths: Sequence[int],
        neck: nn.Module | None = None,
    ) -> None:
        super().__init__(backbone, head, target, loss)
        self.num_visible, self.depths, self.neck = num_visible, tuple(depths), neck

    def forward(self, images: Tensor, mask: Tensor) -> PretrainOutput:
        """images: (B, C, *size). mask: (B, *grid) bool, True = hidden, `num_visible` of each image False."""
        mask = self.flat(mask)
        with torch.no_grad():
            target = self.target(images)
        keep = mask.byte().argsort(dim=1, stable=True)[:, : self.num_visible]
        features = self.backbone.encode(self.backbone.embed(images), self.depths, keep)
        encoded = features[-1] if self.neck is None else self.neck(features)
        prediction = self.head(encoded, keep)
        return PretrainOutput(self.loss(prediction, target, mask), prediction.float(), target, mask)

    def metrics(self) -> dict[str, Tensor]:
        """The neck's."""
        return self.neck.metrics() if self.neck is not None else {}


class CorruptedPrediction(Pretraining):
    """Predicts from an image that is corrupted as a whole: frequencies removed, blurred, noisy (MFM, Xie et al. 2023).

    corruption: (images, mask) -> images, both normalised. head: [tokens] -> [predictions].
    """

    def __init__(self, backbone: Backbone, corruption: nn.Module, head: nn.Module, target: Target, loss: Loss) -> None:
        super().__init__(backbone, head, target, loss)
        self.corruption = corruption

    def flat(self, mask: Tensor) -> Tensor:
        """As it is: it lies over frequencies, or is no mask but a kernel or noise."""
        return mask

    def forward(self, images: Tensor, mask: Tensor) -> PretrainOutput:
        """images: (B, C, H, W). mask: what the method's generator drew, with a leading B."""
        with torch.no_grad():
            target = self.target(images)
            seen = self.corruption(images, mask)
        tokens = self.backbone.tokens(seen)[:, self.backbone.num_prefix_tokens :]
        prediction = self.head([tokens])[-1]
        return PretrainOutput(self.loss(prediction, target, mask), prediction.float(), target, mask)


class Classifier(EncoderModel):
    """A backbone and a classification head on its last block."""

    def __init__(self, backbone: Backbone, head: nn.Module) -> None:
        super().__init__(backbone)
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, *size) to logits (B, classes)."""
        return self.head(self.encode(images))

    def encode(self, images: Tensor) -> Tensor:
        """The last layer's tokens, (B, prefix + L, D)."""
        return self.backbone.tokens(images)


class FrozenEncoder(EncoderModel):
    """A backbone whose features are read and nothing is trained (k-NN).

    head: last layer's tokens -> (B, D); None for the backbone's own read-out.
    """

    optional = frozenset({"head.norm.weight", "head.norm.bias"})

    def __init__(self, backbone: Backbone, head: nn.Module | None = None) -> None:
        super().__init__(backbone)
        self.reads_tokens = head is not None
        self.head = head if head is not None else nn.Identity()
        self.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, *size) to features (B, D)."""
        read = self.backbone.tokens if self.reads_tokens else self.backbone.features
        return self.head(read(images).float())

    def features(self, images: Tensor) -> Tensor:
        """What `forward` gives."""
        return self(images)


class LinearProbe(EncoderModel):
    """A frozen backbone and linear classifiers on its features, which alone are trained.

    The backbone and its norm stay in evaluation mode: what a ResNet's BatchNorm has learned is kept, and drop path
    is off. head: a `ProbeHead`.
    """

    def __init__(self, backbone: Backbone, head: ProbeHead) -> None:
        super().__init__(backbone)
        self.head = head
        self.backbone.requires_grad_(False)
        self.head.norm.requires_grad_(False)

    def train(self, mode: bool = True) -> LinearProbe:
        """Training mode reaches the head's BatchNorm only."""
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, *size) to logits (heads, B, classes), float32."""
        return self.head(self.features(images))

    def features(self, images: Tensor) -> Tensor:
        """What the head reads, (B, D), without gradient."""
        with torch.no_grad():
            return self.head.features(self.backbone.tokens(images))

    def lr_scale(self, name: str) -> float:
        """The scale of the linear classifier that a parameter belongs to."""
        return self.head.lr_scale(name.removeprefix("head."))
