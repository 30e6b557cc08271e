"""Reads a checkpoint's content under our names: finds the weights in it and the layout that their names are of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mfm_core.checkpoint.layouts import LAYOUTS, Layout
from mfm_core.errors import UserError

State = dict[str, Tensor]
WEIGHTS = ("model_state", "model", "state_dict", "module")
"""Keys under which projects save weights, one inside the other."""
AVERAGES = ("ema_state", "state_dict_ema", "model_ema")
"""Keys of moving averages of them: ours, timm's, torchvision's."""
_WRAPPERS = ("module.", "_orig_mod.")


@dataclass
class Checkpoint:
    """Weights under our names.

    state: our name -> tensor, taken out as it is used. theirs: our name -> the name in the file. unread: names in the
    file that no row of the layout's table fits.
    """

    path: str
    layout: Layout
    state: State
    theirs: dict[str, str]
    unread: list[str]

    def rename(self, old: str, new: str) -> None:
        """Moves what begins with `old` to `new`."""
        for name in [name for name in self.state if name.startswith(old)]:
            moved = new + name[len(old) :]
            self.state[moved] = self.state.pop(name)
            self.theirs[moved] = self.theirs.pop(name)

    def leftovers(self) -> list[str]:
        """What was not taken out, by its names in the file."""
        return [self.theirs[name] for name in self.state] + self.unread


def read_checkpoint(content: Any, path: str, average: bool = False) -> Checkpoint:
    """The weights in what `path` holds. Raises UserError where no layout fits.

    `average` takes the moving average of the weights where the checkpoint has one.
    """
    tensors = _find_weights(content, average)
    for layout in LAYOUTS:
        if tensors and layout.matches(set(tensors)):
            ours = layout.to_ours(tensors)
            state = {name: tensors[theirs] for theirs, name in ours.items() if name is not None}
            origin = {name: theirs for theirs, name in ours.items() if name is not None}
            return Checkpoint(path, layout, state, origin, [theirs for theirs, name in ours.items() if name is None])
    known = ", ".join(dict.fromkeys(layout.name for layout in LAYOUTS))
    raise UserError(f"{path}: none of the known checkpoint layouts ({known}) fits.")


def _find_weights(content: Any, average: bool) -> State:
    """The named tensors in a checkpoint, without the prefixes of parallel and compiled models."""
    state = content
    for key in (AVERAGES if average else ()) + WEIGHTS:
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict):
        return {}
    tensors = {}
    for name, value in state.items():
        if isinstance(name, str) and isinstance(value, Tensor):
            for wrapper in _WRAPPERS:
                name = name.removeprefix(wrapper)
            tensors[name] = value
    return tensors
