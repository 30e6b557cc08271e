"""Our own names. The file of a pre-training run says by them where its encoder's final norm is."""

from __future__ import annotations

from mfm_core.checkpoint.layouts.layout import Layout, Names, has

_FOREIGN = (
    *("backbone.layers.", "backbone.norm.", "backbone.fc_norm.", "backbone.head.", "backbone.fc."),
    *("norm.", "fc_norm.", "head.weight", "head.fc.", "decoder"),
)
"""Beginnings that only other projects have beside `backbone.`."""


def _is_ours(names: Names) -> bool:
    return has(names, "backbone.") and not any(has(names, beginning) for beginning in _FOREIGN)


def _is_whole_image(names: Names) -> bool:
    """MFM's head on a ViT normalises all tokens; MaskFeat's norm, which knows a mask token, only what it predicts."""
    return _is_ours(names) and "head.transforms.0.0.weight" in names and "corruption.mask_token" not in names


OURS = (
    Layout(  # of clips, by their positions in two tables: PySlowFast's MAE, see pyslowfast.py
        "this project's",
        lambda s: _is_ours(s) and {"head.encoder_norm.weight", "backbone.pos_embed.spatial"} <= s,
        (("", ""),),
        token_norm="head.encoder_norm.",
        pooled_norm="head.encoder_norm.",
    ),
    Layout(
        "this project's",
        lambda s: _is_ours(s) and "head.encoder_norm.weight" in s,
        (("", ""),),
        (),
        "head.encoder_norm.",
    ),
    Layout("this project's", _is_whole_image, (("", ""),), (), "head.transforms.0.0."),
    Layout("this project's", _is_ours, (("", ""),)),
)
