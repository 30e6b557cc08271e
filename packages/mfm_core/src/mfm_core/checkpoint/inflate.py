"""An image's weights in a model of clips, and position tables in the form that such a model has.

Patch kernels are inflated as in I3D (Carreira & Zisserman 2017) and PySlowFast: repeated over time and divided by the
frames of a patch, so that a clip of equal frames gives the tokens of its image.
"""

from __future__ import annotations

import math
from collections.abc import Collection

import torch
import torch.nn.functional as F
from torch import Tensor

from mfm_core.checkpoint.fit import fit_positions
from mfm_core.checkpoint.formats import Checkpoint, State
from mfm_core.errors import UserError
from mfm_core.interfaces import Grid
from mfm_core.nn.pos_embed import separable_table

KERNEL = "backbone.patch_embed.proj.weight"
TABLES = ("backbone.pos_embed", "head.pos_embed")


def fit_clips(checkpoint: Checkpoint, own: State, grid: Grid, fixed: Collection[str]) -> list[str]:
    """Fits patch kernel and positions of a checkpoint to a model of clips, in place; what was done, in words.

    own: the model's tensors. grid: its tokens; a model of images is left alone. fixed: tables that are sin-cos ones.
    Raises UserError where a position table cannot be made.
    """
    if len(grid) != 3:
        return []
    kernel, wanted = checkpoint.state.get(KERNEL), own.get(KERNEL)
    of_image = kernel is not None and wanted is not None and kernel.dim() == 4 and wanted.dim() == 5
    done = [fit_table(checkpoint, own, name, grid, name in fixed, of_image) for name in TABLES]
    if of_image:
        frames = wanted.shape[2]
        checkpoint.state[KERNEL] = kernel[:, :, None].repeat(1, 1, frames, 1, 1) / frames
        done.append(f"{KERNEL} of an image: repeated over {frames} frames and divided by {frames}")
    return [words for words in done if words]


def fit_table(checkpoint: Checkpoint, own: State, name: str, grid: Grid, fixed: bool, of_image: bool) -> str:
    """Gives the position table `name` the form and the size of the model's, in place; what was done, in words.

    A table in two parts, over space and over time, is summed for a model with one. An image's stands at every time
    step, with zeros for the time; where the model's is `fixed` over space and time, it stays. Raises UserError where
    it cannot be made.
    """
    separable, state = f"{name}.spatial" in own, checkpoint.state
    if name in state and separable and not of_image:
        raise UserError(f"{checkpoint.path} has one position table over space and time; set MVIT.SEP_POS_EMBED False.")
    if not separable and name not in own or not (name in state and of_image or f"{name}.spatial" in state):
        return ""
    space, over_time = _take(checkpoint, name)
    if fixed:
        state[name] = own[name].clone()
        return f"{name} stays as it is, fixed over space and time"
    prefix = int(f"{name}.cls" in own) if separable else own[name].shape[1] - math.prod(grid)
    has_class_token = "backbone.cls_token" in state
    space, done = fit_positions(space, math.prod(grid[1:]) + prefix, grid[1:], has_class_token, checkpoint.path)
    over_time, done_too = _fit_time(over_time, grid[0], space)
    parts = {"spatial": space[:, prefix:], "temporal": over_time, "cls": space[:, :1] if prefix else None}
    if separable:
        made = {f"{name}.{part}": tensor for part, tensor in parts.items() if tensor is not None}
    else:
        made = {name: separable_table(parts["spatial"], parts["temporal"], parts["cls"])}
        done_too = done_too or "summed from its parts over space and time"
    state.update(made)
    checkpoint.theirs.update(dict.fromkeys(made, name))
    words = ", ".join(filter(None, (done, done_too)))
    return f"{name} {words}" if words else ""


def _take(checkpoint: Checkpoint, name: str) -> tuple[Tensor, Tensor | None]:
    """A table over space, the class token's row first where it has one, and one over time; None in images."""
    state = checkpoint.state
    if name in state:
        return state.pop(name), None
    space, over_time, cls = (state.pop(f"{name}.{part}", None) for part in ("spatial", "temporal", "cls"))
    return (space if cls is None else torch.cat([cls, space], dim=1)), over_time


def _fit_time(table: Tensor | None, steps: int, space: Tensor) -> tuple[Tensor, str]:
    """A (1, t, D) table for another number of time steps, linear; zeros of the width of `space` where there is none."""
    if table is None:
        return space.new_zeros(1, steps, space.shape[2]), "of an image: the same at every time step"
    if table.shape[1] == steps:
        return table, ""
    resized = F.interpolate(table.float().transpose(1, 2), size=steps, mode="linear", align_corners=False)
    return resized.transpose(1, 2).to(table.dtype), f"resampled from {table.shape[1]} to {steps} time steps"
