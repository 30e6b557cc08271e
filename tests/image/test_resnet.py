"""The ResNet backbone: torchvision's numbers, the protocol of backbones, BatchNorm under checkpointing and faults."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import pytest
import torch
import torchvision

from mfm_core.config import load_config, plan_run
from mfm_core.engine.guard import RunningStatistics
from mfm_core.errors import UserError
from mfm_core.heads.classification import ClassificationHead
from mfm_core.methods.parts import check_patches
from mfm_core.objective import Classifier
from mfm_core.optim.groups import parameter_groups
from mfm_core.parallel.world import World
from mfm_image.backbones import resnet
from mfm_image.backbones.resnet import ResNet
from mfm_image.models import build_model

NARROW = {"layers": (2, 1, 1, 1), "stem": 4, "planes": (2, 3, 4, 6)}


def config(*overrides):
    base = ["TRAIN.DATASET", "imagenet", "TEST.DATASET", "imagenet", "MODEL.ARCH", "resnet", "MODEL.NUM_CLASSES", 10]
    return load_config(None, [*map(str, base), *map(str, overrides)])


@pytest.mark.parametrize("depth", [50, 101, 152])
def test_classifier_is_torchvisions(depth):
    """With its weights, and running statistics that are not the initial ones."""
    torch.manual_seed(0)
    theirs = getattr(torchvision.models, f"resnet{depth}")(num_classes=10)
    for module in theirs.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
            torch.nn.init.uniform_(module.weight, 0.2, 0.6)
    cfg = config("TASK", "finetune", "MODEL.MODEL_NAME", "", "RESNET.DEPTH", depth, "DATA.TRAIN_CROP_SIZE", 64)
    ours = build_model(cfg)
    heads = {"fc.weight": "head.projection.weight", "fc.bias": "head.projection.bias"}
    ours.load_state_dict({heads.get(k, f"backbone.{k}"): v for k, v in theirs.state_dict().items()}, strict=True)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = theirs.eval()(images)
        torch.testing.assert_close(ours.eval()(images), expected, rtol=1e-5, atol=1e-5)
        assert float(expected.std()) > 1e-3
        pooled = theirs.fc(ours.features(images))
        torch.testing.assert_close(pooled, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [(32, 32), (33, 64), (64, 100), (65, 31 * 3), (224, 160)])
def test_grid(size):
    """It is what the convolutions make of any size, and tokens are the last map row by row."""
    model = ResNet(size, **NARROW).eval()
    images = torch.randn(1, 3, *size)
    maps = model.conv1(images)
    for stage in (model.bn1, model.relu, model.maxpool, model.layer1, model.layer2, model.layer3, model.layer4):
        maps = stage(maps)
    assert tuple(maps.shape[-2:]) == model.grid
    tokens = model.tokens(images)
    assert tokens.shape == (1, model.grid[0] * model.grid[1], model.embed_dim)
    assert torch.equal(tokens[0, model.grid[1] - 1], maps[0, :, 0, -1])
    torch.testing.assert_close(model.features(images), maps.mean(dim=(2, 3)))


def test_pretraining_needs_whole_cells():
    cfg = config("DATA.TRAIN_CROP_SIZE", 80)
    with pytest.raises(UserError, match="TRAIN_CROP_SIZE 80 to be a multiple of 32"):
        check_patches(cfg, ResNet((80, 80), **NARROW))
    with pytest.raises(UserError, match="TRAIN_CROP_SIZE 24 is too small"):
        resnet.resnet_from_cfg(config("DATA.TRAIN_CROP_SIZE", 24))


@pytest.mark.parametrize(("size", "images", "trains"), [(32, 1, False), (32, 2, True), (33, 1, True)])
def test_one_image_of_one_cell_has_nothing_to_normalise(size, images, trains):
    """The plan refuses what torch would in the first step, whatever the batch is divided by, and nothing else."""
    overrides = ["DATA.TRAIN_CROP_SIZE", size, "TASK", "finetune", "MODEL.MODEL_NAME", "", "TRAIN.BATCH_SIZE", 8]
    model = ResNet((size, size), **NARROW).train()
    for accum, world in ((8 // images, 1), (2, 4 // images), (1, 8 // images)):
        cfg = config(*overrides, "TRAIN.ACCUM_STEPS", accum)
        with nullcontext() if trains else pytest.raises(UserError, match="micro-batch; set TRAIN.BATCH_SIZE to 16,"):
            plan_run(cfg, files=64, world_size=world)
    with nullcontext() if trains else pytest.raises(ValueError, match="more than 1 value per channel"):
        model.tokens(torch.randn(images, 3, size, size))
    for still_fine in (["TASK", "probe"], ["AUG.NUM_SAMPLE", 2], ["MODEL.ARCH", "vit"]):
        plan_run(config(*overrides, "TRAIN.ACCUM_STEPS", 8, *still_fine), files=64, world_size=1)


def test_layers():
    """The stem is layer 0, blocks are counted through the stages, and each has all of its tensors."""
    model = ResNet((32, 32), **NARROW)
    layers = {name: model.layer_of(name) for name, _ in model.named_parameters()}
    assert layers["conv1.weight"] == layers["bn1.bias"] == 0
    assert layers["layer1.0.conv1.weight"] == 1 and layers["layer1.1.bn3.weight"] == 2
    assert layers["layer2.0.downsample.1.bias"] == 3 and layers["layer4.0.conv3.weight"] == 5
    assert model.depth == 5 and model.num_layers == 6
    groups = parameter_groups(model, 0.05, layer_decay=0.5, layer_of=model.layer_of, num_layers=model.num_layers)
    spared = {name for group in groups if group["weight_decay"] == 0 for name in group["names"]}
    assert spared == {name for name, p in model.named_parameters() if p.ndim == 1}
    assert {group["lr_scale"] for group in groups} == {0.5**i for i in range(1, 7)}


def test_zero_init():
    plain, zero = (ResNet((32, 32), **NARROW, zero_init=on) for on in (False, True))
    assert all(float(block.bn3.weight.detach().abs().max()) == on for block, on in zip(plain.layer1, (1.0, 1.0)))
    assert all(float(block.bn3.weight.detach().abs().max()) == 0.0 for block in zero.layer1)


def test_checkpointed_activations_change_nothing():
    """Neither gradients nor running statistics: the recomputed blocks must not count their batch twice."""
    torch.manual_seed(0)
    plain = ResNet((64, 64), **NARROW, zero_init=False)
    saving = copy.deepcopy(plain)
    saving.act_checkpoint = True
    images = torch.randn(4, 3, 64, 64)
    for model in (plain, saving):
        model.train()
        for _ in range(2):
            model.tokens(images).square().mean().backward()
    for (name, one), other in zip(plain.named_parameters(), saving.parameters()):
        torch.testing.assert_close(other.grad, one.grad, msg=name)
    for (name, one), other in zip(plain.named_buffers(), saving.buffers()):
        assert torch.equal(one, other), name
    assert int(saving.bn1.num_batches_tracked) == int(saving.layer1[0].bn1.num_batches_tracked) == 2
    assert all(m.momentum == 0.1 for m in saving.modules() if isinstance(m, torch.nn.BatchNorm2d))
    assert saving.state_dict().keys() == plain.state_dict().keys()


def test_frozen_statistics_under_checkpointing():
    """In evaluation mode with gradients, recomputed blocks use the running statistics as the first pass did."""
    torch.manual_seed(0)
    model = ResNet((64, 64), **NARROW, zero_init=False).eval()
    grads = []
    for on in (False, True):
        model.act_checkpoint = on
        model.zero_grad()
        model.tokens(torch.ones(2, 3, 64, 64)).sum().backward()
        grads.append(model.conv1.weight.grad.clone())
    torch.testing.assert_close(*grads)


def test_bf16():
    model = ResNet((64, 64), **NARROW).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = model.features(images)
    assert features.dtype == torch.float32
    torch.testing.assert_close(features, model.features(images), rtol=0.1, atol=0.05)


def test_a_faulty_step_leaves_the_running_statistics_alone():
    torch.manual_seed(0)
    backbone = ResNet((64, 64), **NARROW)
    model = Classifier(backbone, ClassificationHead(backbone.embed_dim, 3, 0, mean_pooling=True, norm=False)).train()
    guard = RunningStatistics(model, World())
    assert len(guard.buffers) == sum(n.endswith(("mean", "var")) for n, _ in backbone.named_buffers())
    for images, fault in ((torch.randn(2, 3, 64, 64), 0.0), (torch.full((2, 3, 64, 64), float("nan")), 1.0)):
        before, copies = guard.read(), [b.clone() for b in guard.buffers]
        model(images)
        changed = [b.clone() for b in guard.buffers]
        guard.settle(before, torch.tensor(fault))
        expected = copies if fault else changed
        assert all(map(torch.equal, guard.buffers, expected))
        assert not any(map(torch.equal, changed, copies))
    assert RunningStatistics(torch.nn.Linear(2, 2), World()).read().numel() == 0
