"""pytorchvideo's MViT (Fan et al. 2021) as its model zoo releases it: query, key and value have a layer each."""

from __future__ import annotations

from mfm_core.checkpoint.layouts.layout import Layout

_POSITIONS = "cls_positional_encoding."
PYTORCHVIDEO = (
    Layout(
        "pytorchvideo MViT",
        lambda s: {"patch_embed.patch_model.weight", "norm_embed.weight"} <= s,
        (
            ("patch_embed.patch_model.", "backbone.patch_embed.proj."),
            (f"{_POSITIONS}cls_token", "backbone.cls_token"),
            (f"{_POSITIONS}pos_embed", "backbone.pos_embed"),
            (f"{_POSITIONS}pos_embed_spatial", "backbone.pos_embed.spatial"),
            (f"{_POSITIONS}pos_embed_temporal", "backbone.pos_embed.temporal"),
            (f"{_POSITIONS}pos_embed_class", "backbone.pos_embed.cls"),
            ("blocks.", "backbone.blocks."),
            ("norm_embed.", "head.encoder_norm."),
            ("head.proj.", "head.projection."),
        ),
        token_norm="head.encoder_norm.",
        note="its norms behind pooling have an epsilon of 1e-5, ours of 1e-6: logits may differ by some 1e-4",
    ),
)
