"""A run's state part by part: each process has its own to write and to read, and none needs more than its share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mfm_core.checkpoint.folder import AVERAGE, FACTS, MODEL, OPTIMIZER, REPLACED, SCALAR, remove_folder, torn_name
from mfm_core.checkpoint.io import force_folder, save_atomic
from mfm_core.checkpoint.state import TrainState
from mfm_core.parallel.parts import Parts, collect_sums, is_piece, like, outlines, read_parts
from mfm_core.parallel.strategy import load_moments


def parts_of(state: TrainState) -> tuple[Parts, set[str]]:
    """This process's tensors of the model, the average and the optimizer; the names of those that all have alike."""
    parts = _model_parts(state.model, MODEL)
    if state.average is not None:
        parts |= _model_parts(state.average, AVERAGE)
    alike = {name for name, tensor in parts.items() if not is_piece(tensor)}
    strategy = state.strategy
    for number, (piece, whole) in strategy.pieces(state.optimizer).items():
        for slot, value in state.optimizer.state.get(piece, {}).items():
            name = f"{OPTIMIZER}{number}.{slot}"
            if value.ndim == 0:
                name, value = name + SCALAR, value.view(1)
            parts[name] = like(value, whole) if value.shape == piece.shape and not name.endswith(SCALAR) else value
            if not strategy.is_shared or is_piece(whole) and not is_piece(parts[name]):
                alike.add(name)
    return parts, alike


def commit(path: Path, content: dict[str, Any]) -> None:
    """Gives the written folder its name; at any moment it is there, or what it takes the place of.

    content: what goes into its small file. Raises UserError or OSError where the disk does not take it.
    """
    torn, replaced = torn_name(path), path.with_name(path.name + REPLACED)
    save_atomic({**content, "files": collect_sums(torn)}, torn / FACTS)
    if path.is_dir():
        remove_folder(replaced)
        os.replace(path, replaced)
    os.replace(torn, path)
    force_folder(path.parent)
    remove_folder(replaced)


def load_parts(state: TrainState, folder: Path, groups: list[dict[str, Any]]) -> None:
    """Restores model, average and optimizer from the folder. groups: the saved optimizer's, with numbers.

    Without an average in the folder the model's weights are taken. Raises RuntimeError where the folder is of another
    model or optimizer.
    """
    there = outlines(folder)
    _load_model(state.model, MODEL, there, folder)
    if state.average is not None:
        beginning = AVERAGE if any(name.startswith(AVERAGE) for name in there) else MODEL
        _load_model(state.average, beginning, there, folder)
    optimizer, pieces = state.optimizer, state.strategy.pieces(state.optimizer)
    if [len(g["params"]) for g in groups] != [len(g["params"]) for g in state.strategy.options(optimizer)]:
        raise RuntimeError("its parameter groups have other sizes")
    parts, slots = _empty_slots(pieces, there)
    read_parts(parts, folder)
    numbers = {id(piece): number for number, (piece, _) in pieces.items()}
    own = [[numbers[id(p)] for p in group["params"]] for group in optimizer.param_groups]
    load_moments(optimizer, {"state": slots, "param_groups": [{**g, "params": n} for g, n in zip(groups, own)]})


def _model_parts(model: nn.Module, beginning: str) -> Parts:
    """In the model's own memory."""
    parts = {}
    for name, tensor in model.state_dict().items():
        scalar = tensor.ndim == 0
        parts[beginning + name + SCALAR * scalar] = tensor.view(1) if scalar else tensor
    return parts


def _load_model(model: nn.Module, beginning: str, there: Parts, folder: Path) -> None:
    parts = _model_parts(model, beginning)
    saved = {name: tensor for name, tensor in there.items() if name.startswith(beginning)}
    other = [name for name in {**parts, **saved} if _shape(parts, name) != _shape(saved, name)]
    if other:
        raise RuntimeError(f"{len(other)} tensors are missing or of another shape, {other[0]} first")
    read_parts(parts, folder)


def _empty_slots(pieces: dict[int, tuple[Tensor, Tensor]], there: Parts) -> tuple[Parts, dict[int, dict[str, Tensor]]]:
    """Room for what the optimizer keeps of this process's pieces: as parts to read, and as the optimizer takes it."""
    parts: Parts = {}
    slots: dict[int, dict[str, Tensor]] = {}
    for name, outline in there.items():
        number, _, slot = name.removeprefix(OPTIMIZER).partition(".")
        if not name.startswith(OPTIMIZER) or int(number) not in pieces:
            continue
        piece, whole = pieces[int(number)]
        own = slots.setdefault(int(number), {})
        if slot.endswith(SCALAR):
            parts[name] = torch.zeros(1, dtype=outline.dtype)
            own[slot.removesuffix(SCALAR)] = parts[name].view(())
            continue
        if outline.shape != whole.shape:
            raise RuntimeError(f"{name} is {tuple(outline.shape)} there and {tuple(whole.shape)} here")
        own[slot] = torch.zeros_like(piece, dtype=outline.dtype, requires_grad=False)
        parts[name] = like(own[slot], whole)
    return parts, slots


def _shape(parts: Parts, name: str) -> torch.Size | None:
    return parts[name].shape if name in parts else None
