"""What the rooms of the project hand to each other: grids, batches, outputs, and the protocols behind them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

Grid = tuple[int, ...]
"""Tokens along each axis, slowest first: (h, w) for images, (t, h, w) for clips."""


class SampleKey(NamedTuple):
    """Asks a data set for one sample. All of a sample's randomness follows from the run's seed and this key."""

    epoch: int
    index: int
    replacement: int = 0
    """How many unreadable files this request has already been moved on from."""
    repetition: int = 0
    """Which of the file's several appearances in the epoch this is (`AUG.REPEATED_SAMPLER`)."""

    @property
    def stream(self) -> tuple[int | str, ...]:
        """The part of a random stream's name that this key makes; a repetition adds to it, the first does not."""
        repeated = ("repetition", self.repetition) if self.repetition else ()
        return (self.epoch, self.index, self.replacement, *repeated)


@dataclass(frozen=True)
class BadFile:
    """A file that could not be used, and why, in one line."""

    path: str
    reason: str


@dataclass
class Sample:
    """One image or clip as a data set returns it: one or several views (`AUG.NUM_SAMPLE`) of one file."""

    index: int
    views: list[Tensor]
    """Each (C, *size) float32, normalised."""
    label: int = -1
    masks: list[Tensor] = field(default_factory=list)
    """What the `MaskGenerator` drew for each view; empty where there is none."""
    bad: list[BadFile] = field(default_factory=list)
    """Files met on the way that could not be read."""


@dataclass
class Batch:
    """What one forward pass sees.

    inputs: (B, C, *size) float32. labels: (B,) int64, or (B, classes) float32 after Mixup. mask: what was drawn in the
    loader to corrupt each input (see `MaskGenerator`), with a leading B; None where nothing is corrupted.
    index: (B,) int64 position in the data set, to name the files of a batch.
    """

    inputs: Tensor
    labels: Tensor
    mask: Tensor | None
    index: Tensor
    bad: list[BadFile] = field(default_factory=list)

    def __len__(self) -> int:
        return self.inputs.shape[0]

    def to(self, device: torch.device) -> Batch:
        """This batch with its tensors on `device`; copies from pinned memory overlap with computation."""
        move = {k: v.to(device, non_blocking=True) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **move)

    def pin_memory(self) -> Batch:
        """Called by the loader (`DATA_LOADER.PIN_MEMORY`)."""
        return replace(self, **{k: v.pin_memory() for k, v in vars(self).items() if isinstance(v, Tensor)})

    def split(self, parts: int) -> list[Batch]:
        """Cuts the batch into `parts` micro-batches, in order, as even in size as can be (gradient accumulation)."""
        if parts == 1:
            return [self]
        chunks = {k: v.tensor_split(parts) for k, v in vars(self).items() if isinstance(v, Tensor)}
        bad = [self.bad] + [[]] * (parts - 1)
        return [replace(self, bad=bad[i], **{k: v[i] for k, v in chunks.items()}) for i in range(parts)]


@dataclass
class PretrainOutput:
    """What every pre-training method returns.

    loss: scalar, the mean over what the loss counts. prediction and target: (B, L, D), tokens row-major over the
    grid. mask: as it was given, flattened to (B, L) bool, True = hidden, where it hides tokens.
    """

    loss: Tensor
    prediction: Tensor
    target: Tensor
    mask: Tensor


class Backbone(Protocol):
    """What methods may ask of an encoder. Those that hide tokens need `embed` and `encode`, which a ResNet has not.

    So are `embed_grid`, `stem_dim`, `grids` and `dims` only asked of encoders that have these.
    """

    grid: Grid
    """Of the last block's tokens; `patch_stride` is pixels per token of it, `embed_dim` their width."""
    patch_stride: tuple[int, ...]
    embed_dim: int
    embed_grid: Grid
    """Of the patch embedding's tokens, finer than `grid` where blocks pool; `stem_dim` is their width."""
    stem_dim: int
    grids: Sequence[Grid]
    """Of the tokens behind each block; `dims` are their widths."""
    dims: Sequence[int]
    depth: int
    num_prefix_tokens: int
    """Tokens before the patches': 1 with a class token, else 0."""
    needs_norm: bool
    """Whether heads begin with a LayerNorm: a ViT ends without one, a ResNet has its own norms."""
    num_layers: int
    """The layer of a head, for layer decay."""

    def tokens(self, x: Tensor) -> Tensor:
        """(B, C, *size) to the last layer's tokens (B, prefix + L, D), row-major over `grid`, without a final norm."""

    def stages(self) -> dict[str, nn.Module]:
        """Modules whose outputs show the way of a batch in `--dry-run`, by what they are."""

    def features(self, x: Tensor) -> Tensor:
        """Frozen-feature read-out, (B, D) float32."""

    def layer_of(self, name: str) -> int:
        """The depth of a parameter, for layer decay."""

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that weight decay may spare."""

    def embed(self, x: Tensor) -> Tensor:
        """(B, C, *size) to patch tokens (B, L, stem_dim), over `embed_grid`, without positions or class token."""

    def encode(self, tokens: Tensor, depths: Sequence[int], keep: Tensor | None = None) -> list[Tensor]:
        """Adds class token and positions, runs the blocks; the outputs of the blocks in `depths`, class token kept.

        keep: (B, V) indices of the patch tokens that enter the blocks, after positions are added; None for all.
        """


class MaskGenerator(Protocol):
    """Draws, in the loader, what corrupts one input; the same generator state draws the same."""

    def __call__(self, generator: torch.Generator, image: Tensor) -> Tensor:
        """For most methods (*grid) bool, True = hidden; a degradation draws its kernel or its noise.

        image: the (C, *size) normalised input that it is for, which few need to look at.
        """


class Loss(Protocol):
    """What pre-training minimises."""

    def __call__(self, prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """A scalar, the mean over what is counted. prediction, target: (B, L, D)."""

    def weight(self, mask: Tensor) -> Tensor:
        """How many terms that mean runs over, a scalar float tensor: micro-batches and ranks are joined by it."""


class Target(Protocol):
    """Maps images to what is predicted. No learned state, no gradient."""

    dim: int

    def __call__(self, images: Tensor) -> Tensor:
        """(B, C, *size) to (B, L, dim) float32."""


class Task(Protocol):
    """What the training loop trains: a model with a loss. Pre-training, fine-tuning and probing differ only here."""

    model: nn.Module
    train_set: Any
    """`train_set[SampleKey]` gives a `Sample`; `train_set.listing` has the `paths` and `labels` of the files."""
    files: int
    """Training files."""
    summary_input: tuple[Tensor, ...]
    """Meta tensors for one input of the model's forward pass."""
    warnings: list[str]
    """What the user should know before the run starts."""

    def listings(self) -> dict[str, Any]:
        """The lists of files that it reads, by what the files are for; all processes must find the same."""

    def eval_loaders(self) -> list[Any]:
        """The loaders that `evaluate` reads, whose unreadable files are listed."""

    def prepare(self, batch: Batch) -> Batch:
        """Mixes or changes a micro-batch on the device, drawing from the global generators (Mixup)."""

    def weight(self, batch: Batch) -> Tensor:
        """How many terms the loss of this batch averages over (masked tokens, images), a scalar float tensor."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean loss over those terms, a scalar."""

    def metrics(self) -> dict[str, Tensor]:
        """Scalars on the device that belong on every log line beside the loss."""

    def evaluate(self, model: nn.Module, epoch: int, last: bool) -> dict[str, float]:
        """Numbers for the log line after `epoch` epochs (0: before training), {} where none are due.

        All ranks call it and get the same; accuracies in percent.
        """

    def pictures(self, model: nn.Module, epoch: int, last: bool) -> list[tuple[str, Any, str]]:
        """(name, what to show, caption) of whatever is due after `epoch` epochs: a PIL image, or one of `exhibits`."""

    def file_name(self, index: int) -> str:
        """The path of training file `index`."""
