"""How the weights of a run of ours were trained, as far as their shapes do not show it: heads, and what inputs were."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fvcore.common.config import CfgNode

from mfm_core.checkpoint.state import FORMAT
from mfm_core.config.load import stored_config, value_of
from mfm_core.errors import UserError
from mfm_core.nn.presets import decoder_heads_from_cfg, size_from_cfg

UNSEEN: tuple[tuple[str, str, Callable[[CfgNode], Any]], ...] = (
    ("backbone.blocks.", "MVIT.NUM_HEADS", lambda cfg: size_from_cfg(cfg)[2]),
    (".attn.pool_", "MVIT.RESIDUAL_POOLING", lambda cfg: cfg.MVIT.RESIDUAL_POOLING),
    ("head.blocks.", "MASK.DECODER_NUM_HEADS", decoder_heads_from_cfg),
)
"""What is in the names of the tensors that a key is about; the key; what it comes to. Without it they compute another
function, of the same shapes."""
INPUTS = ("DATA.MEAN", "DATA.STD")


def compare_training(content: Any, cfg: CfgNode, loaded: Sequence[str], path: str) -> list[str]:
    """Compares how what `path` holds was trained with the configuration that is to use it: what to warn of.

    content: of the checkpoint; only runs of ours say how they trained. loaded: the names of what was taken from it.
    Raises UserError, naming the key, where the weights would not be what was trained.
    """
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        return []
    trained = stored_config(content["cfg"])
    for part, key, value in UNSEEN:
        there, here = value(trained), value(cfg)
        if there != here and any(part in name for name in loaded):
            raise UserError(f"{path} was trained with {key} {there}, and this model has {here}; {key} must match it.")
    pairs = ((key, list(value_of(trained, key)), list(value_of(cfg, key))) for key in INPUTS)
    return [
        f"{path} was trained with {key} {there}, and here it is {here}: its inputs are not what it knows."
        for key, there, here in pairs
        if there != here
    ]
