"""Released layouts: how the parameter names of other projects read in ours, recognised from the names alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mfm_core.errors import UserError

State = dict[str, Tensor]


@dataclass(frozen=True)
class Layout:
    """A released layout. matches: whether a state has it. prefixes: theirs -> ours, None drops the tensor."""

    name: str
    matches: Callable[[State], bool]
    prefixes: tuple[tuple[str, str | None], ...]

    def to_ours(self, state: State) -> State:
        """The state under our names; the first matching prefix counts, names that match none keep theirs."""
        ours = {}
        for name, tensor in state.items():
            for theirs, mine in self.prefixes:
                if name.startswith(theirs):
                    name = None if mine is None else mine + name[len(theirs) :]
                    break
            if name is not None:
                ours[name] = tensor
        return ours


_ENCODER = tuple((name, f"backbone.{name}") for name in ("cls_token", "pos_embed", "patch_embed.", "blocks."))

LAYOUTS = (
    Layout("MFM", lambda s: any(n.startswith("backbone.") for n in s), ()),
    Layout(
        "PySlowFast MaskFeat",
        lambda s: "mask_token" in s and any(n.startswith("pred_head.") for n in s),
        (*_ENCODER, ("mask_token", "corruption.mask_token"), ("pred_head.", "head."), ("hogs.", None)),
    ),
    Layout(
        "PySlowFast classifier",
        lambda s: "head.projection.weight" in s and "patch_embed.proj.weight" in s,
        (*_ENCODER, ("norm.", "head.norm."), ("head.", "head.")),
    ),
)


def read_state(content: Any, path: str, average: bool = False) -> tuple[State, str]:
    """The model's tensors under our names, and the name of the layout. Raises UserError where no layout fits.

    `average` takes the moving average of the weights where the checkpoint has one.
    """
    state = content
    for key in (("ema_state",) if average else ()) + ("model_state", "model", "state_dict"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if isinstance(state, dict):
        tensors = {name.removeprefix("module."): t for name, t in state.items() if _is_named(name, t)}
        for layout in LAYOUTS:
            if tensors and layout.matches(tensors):
                return layout.to_ours(tensors), layout.name
    raise UserError(f"{path}: none of the known checkpoint layouts ({', '.join(x.name for x in LAYOUTS)}) fits.")


def _is_named(name: Any, value: Any) -> bool:
    return isinstance(name, str) and isinstance(value, Tensor)


def pyslowfast_name(name: str) -> str:
    """Our parameter name as PySlowFast calls it; the inverse of the tables above."""
    if name.startswith("head.norm."):
        return name.removeprefix("head.")
    if name.startswith(("head.transforms.", "head.projections.")):
        return f"pred_{name}"
    return name.removeprefix("backbone.").removeprefix("corruption.")
