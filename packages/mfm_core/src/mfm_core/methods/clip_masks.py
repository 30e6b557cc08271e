"""Masks of clips by name: cubes, tubes and frames, drawn in their window and enlarged to the token grid."""

from __future__ import annotations

from fvcore.common.config import CfgNode

from mfm_core.config.plan import drawing_of, mask_window, method_of
from mfm_core.errors import UserError
from mfm_core.interfaces import Grid
from mfm_core.masking.block import BlockMask
from mfm_core.masking.cube import WIDER, CubeMask
from mfm_core.masking.enlarged import Enlarged
from mfm_core.masking.random import RandomMask
from mfm_core.methods.parts import EQUAL_COUNTS, MASKS, hidden_in_window


@MASKS.register("cube")
def cube_from_cfg(cfg: CfgNode, grid: Grid) -> Enlarged:
    """Cubes of AUG.MASK_WINDOW_SIZE."""
    window = mask_window(cfg, grid)
    largest = cfg.AUG.MAX_MASK_PATCHES_PER_BLOCK
    return Enlarged(CubeMask(window, cfg.AUG.MASK_RATIO, largest, _exact(cfg, window)), window, grid)


@MASKS.register("tube")
def tube_from_cfg(cfg: CfgNode, grid: Grid) -> Enlarged:
    """The same places at all times: blocks, or single ones where masks are drawn at random."""
    window = mask_window(cfg, grid)
    if drawing_of(cfg) == "random":
        return Enlarged(RandomMask(window, hidden_in_window(cfg, window)), window, grid)
    largest = cfg.AUG.MAX_MASK_PATCHES_PER_BLOCK
    blocks = BlockMask(window[1:], cfg.AUG.MASK_RATIO, largest, _exact(cfg, window), WIDER)
    return Enlarged(blocks, window, grid)


@MASKS.register("frames")
def frames_from_cfg(cfg: CfgNode, grid: Grid) -> Enlarged:
    """All places at some times; round(ratio * times) of them where PySlowFast's MaskFeat counts them so."""
    window = mask_window(cfg, grid)
    if drawing_of(cfg) == "random" or method_of(cfg) in EQUAL_COUNTS:
        return Enlarged(RandomMask(window, hidden_in_window(cfg, window)), window, grid)
    hidden = round(cfg.AUG.MASK_RATIO * window[0])
    if not 0 < hidden < window[0]:
        raise UserError(
            f"AUG.MASK_RATIO {cfg.AUG.MASK_RATIO} hides {hidden} of AUG.MASK_WINDOW_SIZE's {window[0]} time steps; at "
            "least one must be hidden and one visible."
        )
    return Enlarged(RandomMask(window, hidden), window, grid)


def _exact(cfg: CfgNode, window: Grid) -> int | None:
    """How many places of the window each clip hides, where all hide the same."""
    return hidden_in_window(cfg, window) if method_of(cfg) in EQUAL_COUNTS else None
