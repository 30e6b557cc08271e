"""The names of mmpretrain, mmselfsup and mmaction2: MAE, MFF (Liu et al. 2023), MaskFeat, and their classifiers.

Fine-tuning there drops the encoder's final norm `ln1` and starts `ln2` afresh behind the mean; probes keep `ln1`.
"""

from __future__ import annotations

from mfm_core.checkpoint.layouts.layout import Layout, Names, Table

_ENCODER: Table = (
    ("backbone.cls_token", "backbone.cls_token"),
    ("backbone.pos_embed", "backbone.pos_embed"),
    ("backbone.patch_embed.projection.", "backbone.patch_embed.proj."),
    ("backbone.layers.", "backbone.blocks."),
)
_BLOCKS = (
    (".ln1.", ".norm1."),
    (".ln2.", ".norm2."),
    (".ffn.layers.0.0.", ".mlp.fc1."),
    (".ffn.layers.1.", ".mlp.fc2."),
)


_MULTISCALE: Table = (
    ("backbone.cls_token", "backbone.cls_token"),
    ("backbone.pos_embed", "backbone.pos_embed"),
    ("backbone.patch_embed.projection.", "backbone.patch_embed.proj."),
    ("backbone.blocks.", "backbone.blocks."),
)
_SCALES = range(16)
"""A multiscale encoder's final norm is called by the number of the scale that it stands behind."""


def _is_multiscale(names: Names) -> bool:
    return {"backbone.patch_embed.projection.weight", "backbone.blocks.0.attn.qkv.weight"} <= names


def _is_vit(names: Names) -> bool:
    return {"backbone.patch_embed.projection.weight", "backbone.layers.0.ln1.weight"} <= names


MMPRETRAIN = (
    Layout(
        # Fine-tuning has one scale more, so that its norm has another name and starts afresh.
        "mmpretrain MaskFeat on video",
        lambda s: _is_multiscale(s) and "backbone.mask_token" in s,
        (
            *_MULTISCALE,
            ("backbone.mask_token", "corruption.mask_token"),
            *((f"backbone.norm{scale}.", "head.transforms.0.0.") for scale in _SCALES),
            ("neck.fc.", "head.projections.0."),
            ("target_generator.", None),
        ),
    ),
    Layout(
        "mmaction2 MViT",
        _is_multiscale,
        (
            *_MULTISCALE,
            *((f"backbone.norm{scale}.", "head.encoder_norm.") for scale in _SCALES),
            ("cls_head.fc_cls.", "head.projection."),
        ),
        token_norm="head.encoder_norm.",
    ),
    Layout(
        "mmpretrain MaskFeat",
        lambda s: _is_vit(s) and "backbone.mask_token" in s,
        (
            *_ENCODER,
            ("backbone.mask_token", "corruption.mask_token"),
            ("backbone.ln1.", "head.transforms.0.0."),
            ("neck.fc.", "head.projections.0."),
            ("target_generator.", None),
        ),
        _BLOCKS,
        token_norm="head.transforms.0.0.",
    ),
    Layout(
        "mmpretrain",
        _is_vit,
        (
            *_ENCODER,
            ("backbone.ln1.", "head.encoder_norm."),
            ("backbone.ln2.", "head.fc_norm."),
            ("backbone.proj_layers.", "neck.proj_layers."),
            ("backbone.proj_weights", "neck.proj_weights"),
            ("neck.mask_token", "head.mask_token"),
            ("neck.decoder_pos_embed", "head.pos_embed"),
            ("neck.decoder_embed.", "head.embed."),
            ("neck.decoder_blocks.", "head.blocks."),
            ("neck.ln1.", "head.norm."),
            ("neck.decoder_pred.", "head.projection."),
            ("head.fc.", "head.projection."),
            ("head.layers.head.", "head.projection."),
        ),
        _BLOCKS,
        token_norm="head.encoder_norm.",
        pooled_norm="head.fc_norm.",
    ),
)
