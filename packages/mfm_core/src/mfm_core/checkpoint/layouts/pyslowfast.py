"""PySlowFast's names (Fan et al. 2020). It calls the norm before and after pooling the same, and loads it by name."""

from __future__ import annotations

from mfm_core.checkpoint.layouts.layout import Layout, has, vit_encoder

_ENCODER = (
    *vit_encoder(),
    ("pos_embed_spatial", "backbone.pos_embed.spatial"),
    ("pos_embed_temporal", "backbone.pos_embed.temporal"),
    ("pos_embed_class", "backbone.pos_embed.cls"),
)
_DEEPEST = 64
"""Blocks that a decoder may have. Its norm is the member of its list of blocks that comes after the last of them."""
_DECODER = (
    ("mask_token", "head.mask_token"),
    ("decoder_embed.", "head.embed."),
    ("decoder_pos_embed", "head.pos_embed"),
    ("dec_pos_embed_spatial", "head.pos_embed.spatial"),
    ("dec_pos_embed_temporal", "head.pos_embed.temporal"),
    ("dec_pos_embed_class", "head.pos_embed.cls"),
    *(
        (f"pred_head.transforms.0.{depth}.{kind}", f"head.norm.{kind}")
        for depth in range(1, _DEEPEST + 1)
        for kind in ("weight", "bias")
    ),
    ("pred_head.transforms.0.", "head.blocks."),
    ("pred_head.projections.0.", "head.projection."),
)
PYSLOWFAST = (
    Layout(
        "PySlowFast MAE",
        lambda s: {"decoder_embed.weight", "mask_token"} <= s and has(s, "pred_head."),
        (*_ENCODER, ("norm.", "head.encoder_norm."), *_DECODER),
        token_norm="head.encoder_norm.",
        pooled_norm="head.encoder_norm.",
    ),
    Layout(
        "PySlowFast MaskFeat",
        lambda s: "mask_token" in s and has(s, "pred_head."),
        (*_ENCODER, ("mask_token", "corruption.mask_token"), ("pred_head.", "head."), ("hogs.", None)),
    ),
    Layout(
        "PySlowFast classifier",
        lambda s: "head.projection.weight" in s and "patch_embed.proj.weight" in s,
        (*_ENCODER, ("norm.", "head.norm."), ("head.", "head.")),
    ),
)
