"""What turns a checkpoint's tensors into those that a model has, beyond names: norms, projections, positions, axes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mfm_core.checkpoint.formats import Checkpoint, State
from mfm_core.errors import UserError
from mfm_core.interfaces import Grid
from mfm_core.nn.pos_embed import resample_positions, resample_rows

_CLASSIFIER_NORM, _DECODER = "head.norm.", "head.embed.weight"


def assign_norms(checkpoint: Checkpoint, own: State, norm_role: str) -> None:
    """Gives the classifier's norm what the checkpoint's project would give it, and a decoder's norm to decoders only.

    norm_role: `ReadOut.norm_role`, "" for heads that take no encoder's norm.
    """
    if (_DECODER in checkpoint.state) != (_DECODER in own):  # both heads have these names, for different things
        for name in (_CLASSIFIER_NORM, "head.projection."):
            checkpoint.rename(name, f"other {name}")
    layout = checkpoint.layout
    source = {"tokens": layout.token_norm, "pooled": layout.pooled_norm}.get(norm_role)
    if source and f"{_CLASSIFIER_NORM}weight" not in checkpoint.state:
        checkpoint.rename(source, _CLASSIFIER_NORM)


def join_projections(checkpoint: Checkpoint, own: State) -> int:
    """Layers of query, key and value become the model's one `qkv`, weights and biases; how many attentions had them."""
    state, count = checkpoint.state, 0
    for name in own:
        layer, joined, kind = name.rpartition("qkv.")
        parts = [f"{layer}{x}.{kind}" for x in "qkv"]
        if joined and name not in state and all(part in state for part in parts):
            state[name] = torch.cat([state.pop(part) for part in parts])
            checkpoint.theirs[name] = checkpoint.theirs[parts[0]]
            count += kind == "weight"
    return count


def fit_biases(checkpoint: Checkpoint, own: State) -> int:
    """Query and value biases become one bias with zeros for the keys, or the reverse, as the model has them.

    A key's bias adds the same to all logits of a query, so that softmax takes it away: outputs are equal either way.
    Returns for how many attentions this was done.
    """
    state, count = checkpoint.state, 0
    for name in own:
        layer = name.removesuffix("qkv.bias")
        if layer != name and name not in state and f"{layer}q_bias" in state and f"{layer}v_bias" in state:
            query, value = state.pop(f"{layer}q_bias"), state.pop(f"{layer}v_bias")
            state[name] = torch.cat([query, torch.zeros_like(query), value])
            checkpoint.theirs[name] = checkpoint.theirs[f"{layer}q_bias"]
            count += 1
        layer = name.removesuffix("q_bias")
        if layer != name and name not in state and f"{layer}qkv.bias" in state:
            state[name], _, state[f"{layer}v_bias"] = state.pop(f"{layer}qkv.bias").chunk(3)
            checkpoint.theirs[name] = checkpoint.theirs[f"{layer}v_bias"] = checkpoint.theirs[f"{layer}qkv.bias"]
            count += 1
    return count


def fit_distances(checkpoint: Checkpoint, own: State) -> list[str]:
    """Brings the tables of relative positions to the model's lengths, linearly; the names of those that this changed.

    (rows, D), a row for each distance along an axis: a stage of another resolution has more of them or fewer.
    """
    state, resampled = checkpoint.state, []
    for name, tensor in own.items():
        source = state.get(name)
        if ".attn.rel_pos_" not in name or source is None or source.shape == tensor.shape:
            continue
        if source.shape[1:] == tensor.shape[1:]:
            state[name] = resample_rows(source, len(tensor))
            resampled.append(name)
    return resampled


def fit_axes(source: Tensor, wanted: torch.Size) -> Tensor:
    """Adds or takes away axes of length 1, where that is all that differs: a 1x1 convolution is a linear layer."""
    if source.shape != wanted and [n for n in source.shape if n != 1] == [n for n in wanted if n != 1]:
        return source.reshape(wanted)
    return source


def fit_positions(table: Tensor, tokens: int, grid: Grid, has_class_token: bool, path: str) -> tuple[Tensor, str]:
    """A (1, N, D) table of a square grid as one for `grid`, of (1, tokens, D); and what was done, in words.

    A row for the class token is left out where the model has none; where the table has none although the file
    `has_class_token`, it is zero. Raises UserError where it cannot be made.
    """
    here = tokens - math.prod(grid)
    old, there = _grid_of(table.shape[1], grid)
    if old is None or len(grid) != 2 and old != grid:
        shape, target = tuple(table.shape), " x ".join(map(str, grid))
        raise UserError(f"{path}: its position table {shape} is of no square grid and cannot be resampled to {target}.")
    if here > there and not has_class_token:
        raise UserError(
            f"{path} was trained without a class token, and this model has one; set MVIT.CLS_EMBED_ON False "
            "(and MVIT.USE_MEAN_POOLING True)."
        )
    done = []
    if old != grid:
        table = resample_positions(table, old, grid, there)
        done.append(f"resampled from {old[0]} x {old[1]} to {grid[0]} x {grid[1]}")
    if here < there:
        table = table[:, there:]
        done.append("without the class token's row")
    if here > there:
        table = torch.cat([torch.zeros_like(table[:, :1]), table], dim=1)
        done.append("zeros for the class token, which had no row")
    return table, ", ".join(done)


def _grid_of(tokens: int, wanted: Grid) -> tuple[Grid | None, int]:
    """The grid of a table and how many rows stand before it: the wanted grid or a square, with a class token or not."""
    for prefix in (1, 0):
        if tokens - prefix == math.prod(wanted):
            return wanted, prefix
    for prefix in (1, 0):
        side = math.isqrt(max(0, tokens - prefix))
        if side > 0 and side * side == tokens - prefix:
            return (side, side), prefix
    return None, 0
