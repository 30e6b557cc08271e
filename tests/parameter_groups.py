"""The parameter groups of an image configuration beside those of other projects, by name."""

from __future__ import annotations

import re

import pytest
import torch

from mfm_core.optim.build import build_optimizer
from mfm_image.models import build_model

OUR_NAMES = (
    # mmpretrain
    (r"^backbone\.mask_token", "corruption.mask_token"),
    (r"^backbone\.layers\.(\d+)\.ln", r"blocks.\1.norm"),
    (r"^backbone\.layers\.(\d+)\.ffn\.layers\.0\.0", r"blocks.\1.mlp.fc1"),
    (r"^backbone\.layers\.(\d+)\.ffn\.layers\.1", r"blocks.\1.mlp.fc2"),
    (r"^backbone\.layers\.", "blocks."),
    (r"^backbone\.ln2\.", "head.norm."),
    (r"^head\.fc\.", "head.projection."),
    (r"^backbone\.patch_embed\.projection\.", "patch_embed.proj."),
    (r"^backbone\.", ""),
    # MAE, MAE-priv, MFM
    (r"^(fc_norm|norm)\.", "head.norm."),
    (r"^head\.(weight|bias)$", r"head.projection.\1"),
    (r"^(cls_token|pos_embed|patch_embed\.|blocks\.)", r"backbone.\1"),
    # MaskFeat's head
    (r"^ln1\.", "head.transforms.0.0."),
    (r"^neck\.fc\.", "head.projections.0."),
)


def our_name(theirs: str, joined: bool = True) -> str:
    """Of a parameter of a classifier, or of MaskFeat, in one of these projects.

    joined: the biases of queries and values are one tensor here, which with MVIT.KEY_BIAS holds the keys', too.
    """
    for pattern, ours in OUR_NAMES:
        theirs = re.sub(pattern, ours, theirs)
    return re.sub(r"\.attn\.[qv]_bias$", ".attn.qkv.bias", theirs) if joined else theirs


def groups_of(cfg) -> list[dict]:
    """The optimizer's groups, of a model without content."""
    with torch.device("meta"):
        model = build_model(cfg)
    return build_optimizer(model, cfg).param_groups


def by_name(groups) -> dict[str, list[float]]:
    """[learning-rate scale, weight decay] of each parameter."""
    return {name: [group["lr_scale"], group["weight_decay"]] for group in groups for name in group["names"]}


def assert_same_groups(cfg, theirs: dict[str, list[float]], rtol=1e-6, rename=our_name):
    """Every parameter of theirs, and no other, with its learning-rate scale and weight decay."""
    ours = by_name(groups_of(cfg))
    expected = {rename(name): values for name, values in theirs.items()}
    assert ours.keys() == expected.keys()
    for name, values in expected.items():
        assert ours[name] == pytest.approx(values, rel=rtol), name
