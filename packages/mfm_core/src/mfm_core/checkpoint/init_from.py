"""Starts a model from other weights and says what was taken, by name. (`resume.py` continues a run instead.)"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import Tensor, nn

from mfm_core.checkpoint.formats import read_state
from mfm_core.checkpoint.io import load_file_state
from mfm_core.errors import UserError
from mfm_core.nn.pos_embed import resample_positions


@dataclass
class InitReport:
    """What happened to each name."""

    layout: str
    loaded: list[str] = field(default_factory=list)
    resampled: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    other_shape: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """One line for each thing that happened, for the log."""
        lines = [f"{len(self.loaded)} tensors loaded ({self.layout} layout)"]
        for what, names in (
            ("positions resampled to the new grid", self.resampled),
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
) -> InitReport:
    """Copies what fits from the checkpoint at `path` into `model`, in place.

    Heads may differ; a backbone tensor of another shape (positions excepted) is an error, as is a checkpoint that
    fills less than `min_match` of the backbone's parameters. `average` prefers the checkpoint's moving average.
    Raises UserError, naming file and tensor.
    """
    state, layout = read_state(load_file_state(path, key), path, average)
    report = InitReport(layout)
    own = model.state_dict()
    for name, tensor in own.items():
        source = state.pop(name, None)
        if source is None:
            report.missing.append(name)
            continue
        if source.shape != tensor.shape and name == "backbone.pos_embed":
            source = _resample(source, model.backbone, path)
            report.resampled.append(name)
        if source.shape != tensor.shape:
            if name.startswith("backbone."):
                raise UserError(
                    f"{path}: {name} is {tuple(source.shape)} there and {tuple(tensor.shape)} here; the checkpoint is "
                    "of another model size, so MVIT.EMBED_DIM, DEPTH or PATCH_KERNEL must change to match it."
                )
            report.other_shape.append(name)
            continue
        tensor.copy_(source)
        report.loaded.append(name)
    report.unused = list(state)
    _refuse_other_depth(report, path)
    _check_share(own, report, path, min_match)
    return report


def _resample(table: Tensor, backbone: nn.Module, path: str) -> Tensor:
    """The checkpoint's square position table on this backbone's grid."""
    prefix = backbone.num_prefix_tokens
    side = math.isqrt(table.shape[1] - prefix)
    if side * side != table.shape[1] - prefix or len(backbone.grid) != 2 or table.shape[2] != backbone.embed_dim:
        raise UserError(
            f"{path}: the position table {tuple(table.shape)} cannot be resampled to a grid of {backbone.grid} "
            f"with width {backbone.embed_dim}."
        )
    return resample_positions(table, (side, side), backbone.grid, prefix)


def _refuse_other_depth(report: InitReport, path: str) -> None:
    """Whole blocks that only one side has; single tensors of a block (layer scales, say) may differ."""
    here, there = _blocks(report.loaded + report.missing), _blocks(report.loaded + report.unused)
    if _blocks(report.loaded) and here != there:
        raise UserError(f"{path} has {len(there)} blocks and this model {len(here)}; MVIT.DEPTH must match it.")


def _blocks(names: list[str]) -> set[str]:
    return {name.split(".")[2] for name in names if name.startswith("backbone.blocks.")}


def _check_share(own: dict[str, Tensor], report: InitReport, path: str, min_match: float) -> None:
    sizes = {name: t.numel() for name, t in own.items() if name.startswith("backbone.")}
    share = sum(sizes.get(name, 0) for name in report.loaded) / max(1, sum(sizes.values()))
    if share < min_match:
        raise UserError(
            f"{path} fills only {share:.0%} of the backbone's parameters, below TRAIN.CHECKPOINT_MIN_MATCH "
            f"{min_match:.0%}; it is of another architecture."
        )
