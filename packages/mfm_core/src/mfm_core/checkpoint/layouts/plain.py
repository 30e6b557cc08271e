"""Encoders and classifiers with the names that most projects share: timm's for a ViT, torchvision's for a ResNet.

MAE's released encoders and classifiers, those of MAE-priv and MFM (attention without key bias), timm's; the ResNets of
torchvision, timm and CoinCheung/MFM. Some are saved under a prefix.
"""

from __future__ import annotations

from mfm_core.checkpoint.layouts.layout import LAYER_SCALE, Layout, Names, resnet_encoder, vit_encoder

PREFIXES = ("", "encoder.", "backbone.")


def _is_vit(names: Names, prefix: str) -> bool:
    return {f"{prefix}patch_embed.proj.weight", f"{prefix}blocks.0.attn.qkv.weight"} <= names


def _has_no_key_bias(names: Names) -> bool:
    return any(name.endswith(".attn.q_bias") for name in names)


def _rest(prefix: str, pooled_norm: str) -> tuple[tuple[str, str], ...]:
    """Final norms and classifier, which a wrapper may have left outside its prefix."""
    rows = (("norm.", "head.encoder_norm."), ("fc_norm.", pooled_norm), ("head.", "head.projection."))
    return tuple((p + theirs, mine) for p in dict.fromkeys((prefix, "")) for theirs, mine in rows)


def _without_key_bias(prefix: str) -> Layout:
    """MAE-priv has its `fc_norm` behind class token and mean alike, MFM behind the mean: the names don't tell."""
    return Layout(
        "MAE-priv or MFM ViT",
        lambda s: _is_vit(s, prefix) and _has_no_key_bias(s),
        (*vit_encoder(prefix), *_rest(prefix, "head.norm.")),
        LAYER_SCALE,
        token_norm="head.encoder_norm.",
    )


def _with_key_bias(prefix: str) -> Layout:
    return Layout(
        "MAE or timm ViT",
        lambda s: _is_vit(s, prefix),
        (*vit_encoder(prefix), *_rest(prefix, "head.fc_norm.")),
        LAYER_SCALE,
        token_norm="head.encoder_norm.",
        pooled_norm="head.fc_norm.",
    )


def _resnet(prefix: str) -> Layout:
    return Layout(
        "torchvision ResNet",
        lambda s: {f"{prefix}conv1.weight", f"{prefix}layer1.0.conv1.weight"} <= s,
        (*resnet_encoder(prefix), (f"{prefix}fc.", "head.projection."), ("decoder.0.", "head.projections.0.")),
    )


PLAIN = tuple(make(prefix) for prefix in PREFIXES for make in (_without_key_bias, _with_key_bias, _resnet))
