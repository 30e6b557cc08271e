"""MaskFeat: hidden patches become a mask token, and a linear head predicts a feature of them (Wei et al. 2022)."""

from __future__ import annotations

from fvcore.common.config import CfgNode

from mfm_core.config.plan import modality_of
from mfm_core.corruption.tokens import MaskToken
from mfm_core.errors import UserError
from mfm_core.heads.linear import SeparateHeads
from mfm_core.methods.parts import METHODS, backbone_from_cfg, check_patches, loss_from_cfg, target_from_cfg
from mfm_core.nn.init import init_mmpretrain_biases
from mfm_core.objective import MaskedPrediction

MMPRETRAIN_BIASES = {"image": (0.0, None), "video": (0.02, 0.0)}
"""Where biases of norms and of the patch projection start, None is as torch starts them."""


@METHODS.register("maskfeat")
def maskfeat_from_cfg(cfg: CfgNode) -> MaskedPrediction:
    """HOG of the hidden patches, or another target, from the blocks that MASK.PRETRAIN_DEPTH lists."""
    backbone = backbone_from_cfg(cfg)
    check_patches(cfg, backbone)
    depths = list(cfg.MASK.PRETRAIN_DEPTH)
    if depths != sorted(set(depths)) or depths[0] < 0 or depths[-1] != backbone.depth - 1:
        raise UserError(
            f"MASK.PRETRAIN_DEPTH is {depths}; it lists blocks in rising order and ends with the encoder's last, "
            f"{backbone.depth - 1}, for what lies behind would learn nothing."
        )
    coarser = [i for i in depths if backbone.grids[i] != backbone.grid]
    if coarser:
        raise UserError(
            f"MASK.PRETRAIN_DEPTH is {depths}, but block {coarser[0]} has another grid of tokens than the last; take "
            "blocks of the last stage."
        )
    target = target_from_cfg(cfg, backbone)
    model = MaskedPrediction(
        backbone=backbone,
        corruption=MaskToken(backbone.stem_dim),
        head=SeparateHeads([backbone.dims[i] for i in depths], target.dim),
        target=target,
        loss=loss_from_cfg(cfg, backbone),
        depths=depths,
    )
    if cfg.MASK.INIT == "mmpretrain":
        init_mmpretrain_biases(model, *MMPRETRAIN_BIASES[modality_of(cfg)])
    return model
