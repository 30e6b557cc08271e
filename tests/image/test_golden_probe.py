"""Linear probes against MAE's and mmpretrain's: read-out, logits, running statistics, what trains, LARS steps."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from golden_cases import cases, load_case

from mfm_core.config import get_cfg
from mfm_core.heads.probe import ProbeHead
from mfm_core.optim.build import build_optimizer, follow
from mfm_image.models import build_model

MAE_NAMES = (("norm.", "head.norm."), ("head.0.", "head.batch_norm."), ("head.1.", "head.probes.0."))
MM_NAMES = (
    ("backbone.ln1.", "head.norm."),
    ("neck.bn.", "head.batch_norm."),
    ("head.layers.head.", "head.probes.0."),
    ("backbone.patch_embed.projection.", "backbone.patch_embed.proj."),
    ("backbone.layers.", "backbone.blocks."),
)
MM_PARTS = (
    (".ln1.", ".norm1."),
    (".ln2.", ".norm2."),
    (".ffn.layers.0.0.", ".mlp.fc1."),
    (".ffn.layers.1.", ".mlp.fc2."),
)


def mae_name(theirs: str) -> str:
    return next((ours + theirs[len(old) :] for old, ours in MAE_NAMES if theirs.startswith(old)), f"backbone.{theirs}")


def mm_name(theirs: str) -> str:
    name = next((ours + theirs[len(old) :] for old, ours in MM_NAMES if theirs.startswith(old)), theirs)
    if name.startswith("backbone.blocks."):
        for old, new in MM_PARTS:
            name = name.replace(old, new)
    return name


def probe_config(image_size: int, patch: int, width: int, depth: int, heads: int, classes: int):
    """The configuration of a class-token probe with BatchNorm behind the pre-trained final norm."""
    cfg = get_cfg()
    cfg.TASK = "probe"
    cfg.TRAIN.DATASET = cfg.TEST.DATASET = "imagenet"
    cfg.DATA.TRAIN_CROP_SIZE = cfg.DATA.TEST_CROP_SIZE = image_size
    cfg.MODEL.MODEL_NAME, cfg.MODEL.ARCH, cfg.MODEL.NUM_CLASSES = "", "vit", classes
    cfg.MVIT.PATCH_2D = True
    cfg.MVIT.PATCH_KERNEL = cfg.MVIT.PATCH_STRIDE = [patch, patch]
    cfg.MVIT.PATCH_PADDING = [0, 0]
    cfg.MVIT.EMBED_DIM, cfg.MVIT.DEPTH, cfg.MVIT.NUM_HEADS = width, depth, heads
    cfg.SOLVER.OPTIMIZING_METHOD, cfg.SOLVER.WEIGHT_DECAY = "lars", 0.0
    return cfg


def trainable(model) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("folder", cases("mae/linprobe"), ids=lambda p: p.name)
def test_mae(folder):
    case, io = load_case(folder)
    tolerance, shape = case["tolerance"], case["config"]
    cfg = probe_config(
        *(shape[k] for k in ("img_size", "patch_size", "embed_dim", "depth", "num_heads", "num_classes"))
    )
    cfg.MVIT.MLP_RATIO, cfg.MVIT.QKV_BIAS = shape["mlp_ratio"], shape["qkv_bias"]
    cfg.MVIT.USE_MEAN_POOLING = shape["global_pool"]
    model = build_model(cfg)
    weights = torch.load(folder / "weights.pth", weights_only=True)["model"]
    model.load_state_dict({mae_name(name): tensor for name, tensor in weights.items()})
    assert trainable(model) == {mae_name(name) for name in case["trainable"]}

    model.eval()
    torch.testing.assert_close(model.features(io["in_image"]), io["out_eval_features_image"], **tolerance)
    torch.testing.assert_close(model(io["in_image"])[0], io["out_eval_logits_image"], **tolerance)
    model.train()
    norm = model.head.batch_norm
    for i in (1, 2):
        torch.testing.assert_close(model.head(io[f"in_feat{i}"])[0], io[f"out_train_logits{i}"], **tolerance)
        torch.testing.assert_close(norm.running_mean, io[f"out_running_mean{i}"], **tolerance)
        torch.testing.assert_close(norm.running_var, io[f"out_running_var{i}"], **tolerance)
    assert norm.num_batches_tracked == io["out_num_batches_tracked"]
    model.eval()
    torch.testing.assert_close(model.head(io["in_feat1"])[0], io["out_eval_logits1_after"], **tolerance)


@pytest.mark.parametrize("folder", cases("mae/linprobe"), ids=lambda p: p.name)
def test_initial_classifiers(folder):
    case, _ = load_case(folder)
    torch.manual_seed(0)
    head = ProbeHead(768, 1000, 1, False, torch.nn.Identity(), lr_scales=(1.0, 2.0))
    expected = case["config"]["head_weight_init"]["std"]
    weight = head.probes[0].weight.detach()
    assert float(weight.std()) == pytest.approx(expected, rel=5e-3)
    assert case["config"]["measured_init_std_1000x768"] == pytest.approx(expected, rel=5e-3)
    assert abs(float(weight.mean())) < 1e-4 and not head.probes[0].bias.any()
    assert torch.equal(head.probes[0].weight, head.probes[1].weight)


@pytest.mark.parametrize("folder", cases("mmpretrain/mff_classify"), ids=lambda p: p.name)
def test_mmpretrain(folder):
    case, io = load_case(folder)
    tolerance, shape = case["tolerance"], case["config"]["linear"]
    arch = shape["backbone"]["arch"]
    sizes = (shape["backbone"]["img_size"], shape["backbone"]["patch_size"], arch["embed_dims"], arch["num_layers"])
    cfg = probe_config(*sizes, arch["num_heads"], shape["head"]["num_classes"])
    cfg.MVIT.MLP_RATIO = arch["feedforward_channels"] / arch["embed_dims"]
    cfg.SOLVER.LARS_ADAPT_1D = True
    model = build_model(cfg)
    weights = torch.load(folder / "linear_weights.pth", weights_only=True)["state_dict"]
    weights = {mm_name(name): tensor for name, tensor in weights.items()}
    model.load_state_dict(weights)
    assert trainable(model) == {mm_name(name) for name in case["linear_trainable"]}

    images, labels = io["in_image"], io["in_label"]
    model.eval()
    torch.testing.assert_close(model.features(images), io["out_linear_cls_token"], **tolerance)
    torch.testing.assert_close(model(images)[0], io["out_linear_logits_eval"], **tolerance)
    model.train()
    torch.testing.assert_close(model(images)[0], io["out_linear_logits_train"], **tolerance)
    torch.testing.assert_close(model.head.batch_norm.running_mean, io["out_linear_bn_mean_after"], **tolerance)
    torch.testing.assert_close(model.head.batch_norm.running_var, io["out_linear_bn_var_after"], **tolerance)

    model.load_state_dict(weights)
    optimizer = build_optimizer(model, cfg)
    follow(optimizer, lambda scale: scale * 6.4)  # as the case's notes say
    losses = []
    for _ in io["out_linear_lars_losses"]:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images)[0], labels)
        loss.backward()
        losses.append(loss.detach())
        optimizer.step()
    torch.testing.assert_close(torch.stack(losses), io["out_linear_lars_losses"], **tolerance)
    torch.testing.assert_close(model.head.probes[0].weight.detach(), io["out_linear_lars_weight"], **tolerance)
    torch.testing.assert_close(model.head.probes[0].bias.detach(), io["out_linear_lars_bias"], **tolerance)
