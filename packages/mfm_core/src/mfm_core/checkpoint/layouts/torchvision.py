"""torchvision's ViT and MViT, whose names are its own. (Its ResNets have the names that all projects have.)"""

from __future__ import annotations

from mfm_core.checkpoint.layouts.layout import Layout

TORCHVISION = (
    Layout(
        "torchvision ViT",
        lambda s: {"conv_proj.weight", "encoder.pos_embedding"} <= s,
        (
            ("class_token", "backbone.cls_token"),
            ("conv_proj.", "backbone.patch_embed.proj."),
            ("encoder.pos_embedding", "backbone.pos_embed"),
            ("encoder.layers.", ""),
            ("encoder.ln.", "head.encoder_norm."),
            ("heads.head.", "head.projection."),
        ),
        (
            ("encoder_layer_", "backbone.blocks."),
            (".ln_1.", ".norm1."),
            (".ln_2.", ".norm2."),
            (".self_attention.in_proj_", ".attn.qkv."),
            (".self_attention.out_proj.", ".attn.proj."),
            (".mlp.0.", ".mlp.fc1."),
            (".mlp.3.", ".mlp.fc2."),
            (".mlp.linear_1.", ".mlp.fc1."),
            (".mlp.linear_2.", ".mlp.fc2."),
        ),
        token_norm="head.encoder_norm.",
    ),
    Layout(
        "torchvision MViT",
        lambda s: {"conv_proj.weight", "pos_encoding.class_token"} <= s,
        (
            ("conv_proj.", "backbone.patch_embed.proj."),
            ("pos_encoding.class_token", "backbone.cls_token"),
            ("pos_encoding.spatial_pos", "backbone.pos_embed.spatial"),
            ("pos_encoding.temporal_pos", "backbone.pos_embed.temporal"),
            ("pos_encoding.class_pos", "backbone.pos_embed.cls"),
            ("blocks.", "backbone.blocks."),
            ("norm.", "head.encoder_norm."),
            ("head.1.", "head.projection."),
        ),
        (
            (".attn.project.0.", ".attn.proj."),
            (".project.", ".proj."),
            *((f".pool_{x}.pool.", f".pool_{x}.") for x in "qkv"),
            *((f".pool_{x}.norm_act.0.", f".norm_{x}.") for x in "qkv"),
            (".mlp.0.", ".mlp.fc1."),
            (".mlp.3.", ".mlp.fc2."),
        ),
        token_norm="head.encoder_norm.",
    ),
)
