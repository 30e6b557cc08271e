"""PySlowFast's names (Fan et al. 2020). It calls the norm before and after pooling the same, and loads it by name."""

from __future__ import annotations

from mfm_core.checkpoint.layouts.layout import Layout, has, vit_encoder

PYSLOWFAST = (
    Layout(
        "PySlowFast MaskFeat",
        lambda s: "mask_token" in s and has(s, "pred_head."),
        (*vit_encoder(), ("mask_token", "corruption.mask_token"), ("pred_head.", "head."), ("hogs.", None)),
    ),
    Layout(
        "PySlowFast classifier",
        lambda s: "head.projection.weight" in s and "patch_embed.proj.weight" in s,
        (*vit_encoder(), ("norm.", "head.norm."), ("head.", "head.")),
    ),
)
