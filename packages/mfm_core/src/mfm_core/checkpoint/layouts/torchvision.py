"""torchvision's ViT, whose names are its own. (Its ResNets have the names that all projects have.)"""

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
)
