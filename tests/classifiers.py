"""Configurations of image classifiers without dropout or drop path, for tests that load weights into them."""

from __future__ import annotations

from fvcore.common.config import CfgNode

from mfm_core.config import get_cfg


def vit_classifier(side: int, patch: int, classes: int, **mvit: object) -> CfgNode:
    """A ViT's; `mvit` are further keys of MVIT, the sizes of the model among them."""
    cfg = _classifier("vit", side, classes)
    cfg.MVIT.PATCH_2D, cfg.MVIT.PATCH_PADDING = True, [0, 0]
    cfg.MVIT.PATCH_KERNEL = cfg.MVIT.PATCH_STRIDE = [patch, patch]
    cfg.MVIT.DROPPATH_RATE = 0.0
    for key, value in mvit.items():
        cfg.MVIT[key] = value
    return cfg


def resnet_classifier(depth: int, side: int, classes: int) -> CfgNode:
    """A ResNet's."""
    cfg = _classifier("resnet", side, classes)
    cfg.RESNET.DEPTH = depth
    return cfg


def _classifier(arch: str, side: int, classes: int) -> CfgNode:
    cfg = get_cfg()
    cfg.TASK, cfg.MODEL.MODEL_NAME, cfg.MODEL.ARCH = "finetune", "", arch
    cfg.TRAIN.DATASET = cfg.TEST.DATASET = "imagenet"
    cfg.DATA.TRAIN_CROP_SIZE = cfg.DATA.TEST_CROP_SIZE = side
    cfg.MODEL.NUM_CLASSES, cfg.MODEL.DROPOUT_RATE = classes, 0.0
    return cfg
