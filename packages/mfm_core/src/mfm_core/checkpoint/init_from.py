"""Starts a model from other weights and says what was taken, by name. (`resume.py` continues a run instead.)"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from fvcore.common.config import CfgNode
from torch import Tensor, nn

from mfm_core.checkpoint.fit import (
    assign_norms,
    fit_axes,
    fit_biases,
    fit_distances,
    fit_positions,
    join_projections,
)
from mfm_core.checkpoint.formats import Checkpoint, read_checkpoint
from mfm_core.checkpoint.inflate import fit_clips
from mfm_core.checkpoint.io import load_file_state
from mfm_core.checkpoint.trained_as import compare_training
from mfm_core.errors import UserError

_TABLES = ("backbone.pos_embed", "head.pos_embed")
_MOST_NAMED = 8
_BLOCK = re.compile(r"backbone\.(?:blocks|layer\d)\.\d+(?=\.)")


@dataclass
class InitReport:
    """What happened to each name. `unused` has the names of the file, the others ours."""

    layout: str
    loaded: list[str] = field(default_factory=list)
    resampled: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    other_shape: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What was changed on the way, and what to know of the numbers, in words."""
    warnings: list[str] = field(default_factory=list)
    """In what the weights were trained otherwise than they are used."""

    def lines(self) -> list[str]:
        """One line for each thing that happened, for the log."""
        lines = [f"{len(self.loaded)} tensors loaded ({self.layout} layout)", *self.notes]
        for what, names in (
            ("not in the checkpoint, freshly initialised", self.missing),
            ("in the checkpoint, of no use here", self.unused),
            ("of another shape in the checkpoint, freshly initialised", self.other_shape),
        ):
            if names:
                lines.append(f"{what}: {', '.join(names)}")
        return lines


def init_from(
    model: nn.Module,
    path: str,
    min_match: float = 0.5,
    key: str = "TRAIN.CHECKPOINT_FILE_PATH",
    average: bool = False,
    cfg: CfgNode | None = None,
) -> InitReport:
    """Copies what fits from the checkpoint at `path` into `model`, in place.

    Heads may differ; a backbone tensor of another shape (positions excepted) is an error, as is a checkpoint that
    fills less than `min_match` of the backbone's parameters. `average` prefers the checkpoint's moving average. `cfg`
    is compared with what the checkpoint says of its run (`trained_as`).
    Raises UserError, naming file and tensor.
    """
    content = load_file_state(path, key)
    checkpoint = read_checkpoint(content, path, average)
    report = InitReport(checkpoint.layout.name, notes=[checkpoint.layout.note] if checkpoint.layout.note else [])
    own = model.state_dict()
    _refuse_other_architecture(own, checkpoint)
    assign_norms(checkpoint, own, getattr(getattr(model, "head", None), "norm_role", ""))
    attentions = join_projections(checkpoint, own)
    if attentions:
        report.notes.append(f"query, key and value joined in {attentions} attentions")
    attentions = fit_biases(checkpoint, own)
    if attentions:
        report.notes.append(f"biases of query and value fitted in {attentions} attentions; a key's has no effect")
    report.notes += _fit_clips(checkpoint, own, model)
    _fit_tables(checkpoint, own, model, report)
    resampled = fit_distances(checkpoint, own)
    if resampled:
        report.resampled += resampled
        report.notes.append(f"relative positions resampled in {len(resampled)} tables: {', '.join(resampled)}")
    for name, tensor in own.items():
        source = checkpoint.state.pop(name, None)
        if source is None:
            report.missing.append(name)
            continue
        source = fit_axes(source, tensor.shape)
        if source.shape == tensor.shape:
            tensor.copy_(source)
            report.loaded.append(name)
        elif name.startswith("backbone."):
            raise UserError(_other_size(name, source, tensor, path))
        else:
            report.other_shape.append(name)
    report.unused = checkpoint.leftovers()
    _refuse_other_depth(checkpoint, report)
    _check_share(own, report, path, min_match, key)
    if cfg is not None:
        report.warnings += compare_training(content, cfg, report.loaded, path)
    return report


def _fit_clips(checkpoint: Checkpoint, own: dict[str, Tensor], model: nn.Module) -> list[str]:
    """Fits the checkpoint to a model of clips, where this is one; what was done."""
    grid = getattr(model.backbone, "embed_grid", None) or getattr(model.backbone, "grid", ())
    owners = {f"{name}.pos_embed": getattr(model, name, None) for name in ("backbone", "head")}
    fixed = {table for table, owner in owners.items() if getattr(owner, "positions", "") == "sincos"}
    return fit_clips(checkpoint, own, grid, fixed)


def _fit_tables(checkpoint: Checkpoint, own: dict[str, Tensor], model: nn.Module, report: InitReport) -> None:
    """Brings position tables to the model's grid and its class token."""
    has_class_token = "backbone.cls_token" in checkpoint.state
    for name in _TABLES:
        source, tensor = checkpoint.state.get(name), own.get(name)
        if source is None or tensor is None or source.shape == tensor.shape or source.shape[2:] != tensor.shape[2:]:
            continue
        table, done = fit_positions(
            source, tensor.shape[1], model.backbone.embed_grid, has_class_token, checkpoint.path
        )
        checkpoint.state[name] = table
        report.resampled.append(name)
        report.notes.append(f"{name} {done}")


def _other_size(name: str, source: Tensor, tensor: Tensor, path: str) -> str:
    keys = "RESNET.DEPTH" if _BLOCK.match(name) and ".layer" in name else "MVIT.EMBED_DIM, DEPTH or PATCH_KERNEL"
    if ".attn.pool_" in name:
        keys = "MVIT.POOL_KVQ_KERNEL or NUM_HEADS"
    return (
        f"{path}: {name} is {tuple(source.shape)} there and {tuple(tensor.shape)} here; the checkpoint is of another "
        f"model size, so {keys} must change to match it."
    )


def _refuse_other_architecture(own: dict[str, Tensor], checkpoint: Checkpoint) -> None:
    here, there = _architecture(own), _architecture(checkpoint.state)
    if here and there and here != there:
        keys = "MODEL.ARCH" if "ResNet" in (here, there) else "the pooling keys of MVIT"
        raise UserError(f"{checkpoint.path} is a {there}'s, and this model is a {here}; {keys} must match it.")


def _architecture(names: Iterable[str]) -> str:
    names = set(names)
    if any(".attn.pool_" in name or ".attn.rel_pos_" in name for name in names):
        return "multiscale ViT"
    kinds = {"backbone.patch_embed.proj.weight": "ViT", "backbone.conv1.weight": "ResNet"}
    return next((kind for name, kind in kinds.items() if name in names), "")


def _refuse_other_depth(checkpoint: Checkpoint, report: InitReport) -> None:
    """Whole blocks that only one side has; single tensors of a block (layer scales, say) may differ."""
    here, there = _blocks(report.loaded + report.missing), _blocks([*report.loaded, *checkpoint.state])
    if _blocks(report.loaded) and here != there:
        key = "RESNET.DEPTH" if any(".layer" in name for name in here) else "MVIT.DEPTH"
        raise UserError(f"{checkpoint.path} has {len(there)} blocks and this model {len(here)}; {key} must match it.")


def _blocks(names: list[str]) -> set[str]:
    return {match[0] for match in map(_BLOCK.match, names) if match}


def _check_share(own: dict[str, Tensor], report: InitReport, path: str, min_match: float, key: str) -> None:
    sizes = {name: t.numel() for name, t in own.items() if name.startswith("backbone.")}
    share = sum(sizes.get(name, 0) for name in report.loaded) / max(1, sum(sizes.values()))
    if share >= min_match:
        return
    lacking = [name for name in report.missing if name in sizes]
    names = ", ".join(lacking[:_MOST_NAMED]) + (" and others" if len(lacking) > _MOST_NAMED else "")
    if min_match == 1:
        raise UserError(f"{path} lacks {names}; {key} has to name weights of the whole backbone of this config.")
    raise UserError(
        f"{path} fills only {share:.0%} of the backbone's parameters, below TRAIN.CHECKPOINT_MIN_MATCH "
        f"{min_match:.0%} (it lacks {names}); it is of another architecture."
    )
