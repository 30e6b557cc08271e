"""pytorchvideo's MViTs from their files: the same logits, and every tensor of the released size in its place."""

from __future__ import annotations

import pytest
import torch
from paths import CONFIGS
from torch import nn

from mfm_core.checkpoint.fit import join_projections
from mfm_core.checkpoint.formats import read_checkpoint
from mfm_core.checkpoint.init_from import init_from
from mfm_core.config import load_config
from mfm_core.errors import UserError
from mfm_video.models import build_model

FILE = str(CONFIGS / "video" / "k400_MVIT_B_16x4_CONV.yaml")
SMALL = {
    "spatial_size": 64,
    "temporal_size": 4,
    "depth": 4,
    "patch_embed_dim": 16,
    "head_num_classes": 11,
    "embed_dim_mul": [[1, 2.0], [3, 2.0]],
    "atten_head_mul": [[1, 2.0], [3, 2.0]],
    "pool_q_stride_size": [[1, 1, 2, 2], [3, 1, 2, 2]],
}
KEYS = {
    "spatial_size": ("DATA.TRAIN_CROP_SIZE", "DATA.TEST_CROP_SIZE"),
    "temporal_size": ("DATA.NUM_FRAMES",),
    "head_num_classes": ("MODEL.NUM_CLASSES",),
    "depth": ("MVIT.DEPTH",),
    "patch_embed_dim": ("MVIT.EMBED_DIM",),
    "embed_dim_mul": ("MVIT.DIM_MUL",),
    "atten_head_mul": ("MVIT.HEAD_MUL",),
    "pool_q_stride_size": ("MVIT.POOL_Q_STRIDE",),
    "cls_embed_on": ("MVIT.CLS_EMBED_ON",),
    "sep_pos_embed": ("MVIT.SEP_POS_EMBED",),
}


@pytest.fixture
def create():
    """pytorchvideo's function that makes MViTs."""
    return pytest.importorskip("pytorchvideo.models.vision_transformers").create_multiscale_vision_transformers


def hub_settings(frames: int = 16) -> dict:
    """What pytorchvideo's hub gives that function for MVIT_B_16x4 or MVIT_B_32x3."""
    hub = pytest.importorskip("pytorchvideo.models.hub.vision_transformers")
    return hub.mvit_video_base_config if frames == 16 else hub.mvit_video_base_32x3_config


def config(**settings):
    """Our configuration of MVIT_B_16x4 with other values of theirs."""
    pairs = ((key, str(value)) for name, value in settings.items() for key in KEYS[name])
    return load_config(FILE, [word for pair in pairs for word in pair])


def stirred(model: nn.Module) -> nn.Module:
    """All parameters anew, so that no bias, norm or table is without effect; pooled tokens of a size around 1."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * (0.3 if p.ndim == 1 or "pool" in name else 0.2))
            if "norm" in name and name.endswith("weight"):
                p.add_(1.0)
    return model.eval()


def logits_of(model: nn.Module) -> torch.Tensor:
    clip = torch.randn(2, 3, 4, 64, 64, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        return model(clip)


def saved(model: nn.Module, folder) -> str:
    torch.save({"model_state": model.state_dict()}, folder / "theirs.pyth")
    return str(folder / "theirs.pyth")


@pytest.mark.parametrize(
    "changes", [{}, {"sep_pos_embed": False}, {"cls_embed_on": False}], ids=["hub", "one table", "no class token"]
)
def test_equal_logits(changes, create, tmp_path):
    """As pytorchvideo makes them; and closer where its norms behind pooling have PySlowFast's epsilon, as ours do."""
    theirs = stirred(create(**{**hub_settings(), **SMALL, **changes}))
    ours = build_model(config(**SMALL, **changes)).eval()
    report = init_from(ours, saved(theirs, tmp_path))
    assert report.layout == "pytorchvideo MViT"
    assert not report.missing and not report.unused and not report.resampled and not report.other_shape
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    assert "query, key and value joined in 4 attentions" in report.lines()
    got, expected = logits_of(ours), logits_of(theirs)
    assert float(expected.std()) > 1.0
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=3e-5)
    norms = {name: m for name, m in theirs.named_modules() if ".attn.norm_" in name}
    assert {norm.eps for norm in norms.values()} == {1e-5} and "1e-5" in report.lines()[1]
    for norm in norms.values():
        norm.eps = 1e-6
    torch.testing.assert_close(logits_of(ours), logits_of(theirs), rtol=1e-6, atol=1e-6)


def test_another_head(create, tmp_path):
    """For other classes all but the linear layer comes in; a bare state under a parallel wrapper's names does too."""
    theirs = stirred(create(**{**hub_settings(), **SMALL}))
    state = {f"module.{name}": tensor for name, tensor in theirs.state_dict().items()}
    torch.save(state, tmp_path / "bare.pth")
    ours = build_model(config(**{**SMALL, "head_num_classes": 7}))
    report = init_from(ours, str(tmp_path / "bare.pth"))
    assert report.other_shape == ["head.projection.weight", "head.projection.bias"]
    assert not report.missing and not report.unused
    assert torch.equal(ours.head.norm.weight, theirs.norm_embed.weight)
    joined, attn = ours.backbone.blocks[2].attn.qkv, theirs.blocks[2].attn
    assert torch.equal(joined.weight, torch.cat([attn.q.weight, attn.k.weight, attn.v.weight]))
    assert torch.equal(joined.bias, torch.cat([attn.q.bias, attn.k.bias, attn.v.bias]))


def test_a_part_alone_is_not_joined(create, tmp_path):
    """A file that lacks a value layer says so: the model's layer stays and the others are of no use."""
    theirs = stirred(create(**{**hub_settings(), **SMALL}))
    state = {name: t for name, t in theirs.state_dict().items() if name != "blocks.0.attn.v.weight"}
    torch.save(state, tmp_path / "x.pth")
    report = init_from(build_model(config(**SMALL)), str(tmp_path / "x.pth"))
    assert report.missing == ["backbone.blocks.0.attn.qkv.weight"]
    assert report.unused == ["blocks.0.attn.q.weight", "blocks.0.attn.k.weight"]


def test_another_pooling_kernel_is_said(create, tmp_path):
    theirs = create(**{**hub_settings(), **SMALL, "pool_kvq_kernel": [1, 3, 3]})
    with pytest.raises(UserError, match="blocks.0.attn.pool_k.weight is .* so MVIT.POOL_KVQ_KERNEL or NUM_HEADS must"):
        init_from(build_model(config(**SMALL)), saved(theirs, tmp_path))


@pytest.mark.parametrize(("frames", "parameters"), [(16, 36_610_672), (32, 36_611_440)])
def test_full_size(frames, parameters, create):
    """The published 36.6 million, and every name and shape of the hub's models, for the file and for 32 frames."""
    theirs = create(**hub_settings(frames))  # reads numbers while it builds, which the meta device has not
    with torch.device("meta"):
        ours = build_model(config(temporal_size=frames))
    assert sum(p.numel() for p in ours.parameters()) == parameters
    checkpoint = read_checkpoint({"model_state": theirs.state_dict()}, "x.pyth")
    assert not checkpoint.unread
    checkpoint.rename(checkpoint.layout.token_norm, "head.norm.")
    own = ours.state_dict()
    assert join_projections(checkpoint, own) == 16
    assert {name: t.shape for name, t in checkpoint.state.items()} == {name: t.shape for name, t in own.items()}
