"""Pre-training files of MAE (He et al. 2022), MAE-priv, and MFM (Xie et al. 2023) with its re-implementation."""

from __future__ import annotations

from mfm_core.checkpoint.layouts.layout import LAYER_SCALE, Layout, has, resnet_encoder, vit_encoder

MAE = Layout(
    "MAE",
    lambda s: {"decoder_embed.weight", "patch_embed.proj.weight"} <= s,
    (
        *vit_encoder(),
        ("norm.", "head.encoder_norm."),
        ("mask_token", "head.mask_token"),
        ("decoder_pos_embed", "head.pos_embed"),
        ("decoder_embed.", "head.embed."),
        ("decoder_blocks.", "head.blocks."),
        ("decoder_norm.", "head.norm."),
        ("decoder_pred.", "head.projection."),
    ),
    token_norm="head.encoder_norm.",
)
MAE_PRIV = Layout(
    # Its encoder's final norm never sees the class token, and its classifiers start theirs afresh in every case.
    "MAE-priv",
    lambda s: {"encoder_to_decoder.weight", "encoder.patch_embed.proj.weight"} <= s,
    (
        *vit_encoder("encoder."),
        ("encoder.norm.", "head.encoder_norm."),
        ("mask_token", "head.mask_token"),
        ("decoder_pos_embed", "head.pos_embed"),
        ("encoder_to_decoder.", "head.embed."),
        ("decoder.blocks.", "head.blocks."),
        ("decoder.norm.", "head.norm."),
        ("decoder.head.", "head.projection."),
    ),
    LAYER_SCALE,
)
MFM = Layout(
    "official MFM",
    lambda s: "decoder.0.weight" in s and has(s, "encoder."),
    (
        *vit_encoder("encoder."),
        ("encoder.norm.", "head.transforms.0.0."),
        *resnet_encoder("encoder."),
        ("decoder.0.", "head.projections.0."),
    ),
    LAYER_SCALE,
    token_norm="head.transforms.0.0.",
)
AUTOENCODERS = (MAE, MAE_PRIV, MFM)
