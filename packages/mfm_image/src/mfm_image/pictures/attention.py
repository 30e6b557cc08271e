"""Where a ViT looks, as heat maps beside and over the images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from PIL import Image
from torch import Tensor

from mfm_core.losses.classification import probabilities
from mfm_core.objective import Classifier, EncoderModel
from mfm_core.report.heat import heat, overlay, stretched
from mfm_core.report.panels import sheet
from mfm_core.report.pixels import Pixels
from mfm_core.tasks.shown import Drawn, Studio
from mfm_image.rollout import attention_map, gradient_map


def attention_sheet(
    model: EncoderModel,
    images: Tensor,
    pixels: Pixels,
    fusion: str,
    discard: float,
    layer: int,
    captions: Sequence[str],
) -> Image.Image:
    """For each of `images` (B, 3, H, W), two in a row where they are many: it, its attention rollout, both together."""
    pooled = reads_patches(model)
    maps = [attention_map(model, image[None], pooled, fusion, discard, layer)[0] for image in images]
    return _sheet(pixels(images), maps, "attention", captions)


def gradient_sheet(
    model: Classifier,
    images: Tensor,
    pixels: Pixels,
    category: int,
    discard: float,
    layer: int,
    name_of: Callable[[int], str],
    captions: Sequence[str],
    probabilities: Callable[[Tensor], Tensor],
) -> Image.Image:
    """The same of the gradient rollout for a class, -1 for the likeliest; captions gain its name and probability.

    probabilities: of logits (1, classes).
    """
    pooled, maps, texts = reads_patches(model), [], []
    for image, caption in zip(images, captions):  # one at a time: each keeps the attention of all blocks
        relevance, logits = gradient_map(model, image[None], pooled, category, discard, layer)
        likeliest = int(logits.argmax())
        shown = likeliest if category < 0 else category
        what = "predicted" if shown == likeliest else "asked for"
        maps.append(relevance[0])
        texts.append(f"{what}: {name_of(shown)}, {float(probabilities(logits)[0, shown]):.0%} · {caption}")
    return _sheet(pixels(images), maps, "speaks for the class", texts)


def reads_patches(model: EncoderModel) -> bool:
    """Whether features come from the patches' mean, as they do but for classifiers that read the class token."""
    reads_class_token = isinstance(model, Classifier) and not model.head.mean_pooling
    return not (reads_class_token and model.backbone.num_prefix_tokens)


def _sheet(images: list[np.ndarray], maps: Sequence[Tensor], title: str, captions: Sequence[str]) -> Image.Image:
    """Image, map and overlay; each map from its smallest to its largest value."""
    values = [stretched(m.detach().float().cpu().numpy()) for m in maps]
    plain = [np.asarray(Image.fromarray(heat(v)).resize(i.shape[1::-1], 0)) for i, v in zip(images, values)]
    panels = list(zip(images, plain, map(overlay, images, values)))
    titles = ("image", title, "over the image")
    side_by_side = 2 if len(panels) > 3 else 1
    starts = range(0, len(panels), side_by_side)
    rows = [[panel for three in panels[i : i + side_by_side] for panel in three] for i in starts]
    texts = [[text for c in captions[i : i + side_by_side] for text in (c, "", "")] for i in starts]
    return sheet(rows, titles * side_by_side, texts)


def heat_caption(fusion: str, discard: float, layer: int) -> str:
    """How a map was made, in words. fusion: "" where heads are not fused by choice."""
    heads = f", {fusion} over heads" if fusion else ""
    dropped = f", smallest {discard:.0%} dropped" if discard else ""
    return f"{'all blocks' if layer < 0 else f'block {layer}'}{heads}{dropped}; from dark (least) to light (most)"


def draw_attention(studio: Studio) -> list[Drawn]:
    """PICTURE.KIND attention: its rollout."""
    cfg, shown = studio.cfg, studio.shown
    how = (cfg.PICTURE.HEAD_FUSION, cfg.PICTURE.DISCARD_RATIO, cfg.PICTURE.LAYER)
    images, pixels = shown.inputs.to(studio.device), Pixels(cfg.DATA.MEAN, cfg.DATA.STD)
    return [("attention", attention_sheet(studio.model, images, pixels, *how, shown.names), heat_caption(*how))]


def draw_gradient(studio: Studio) -> list[Drawn]:
    """PICTURE.KIND gradient: the rollout of attention times its gradient for a class."""
    cfg, shown, names = studio.cfg, studio.shown, studio.classes
    if len(names) != cfg.MODEL.NUM_CLASSES:  # another data set's names would mislead
        names = tuple(f"class {i}" for i in range(cfg.MODEL.NUM_CLASSES))
    how = (cfg.PICTURE.DISCARD_RATIO, cfg.PICTURE.LAYER)
    images, pixels = shown.inputs.to(studio.device), Pixels(cfg.DATA.MEAN, cfg.DATA.STD)
    said = partial(probabilities, loss_func=cfg.MODEL.LOSS_FUNC)
    image = gradient_sheet(studio.model, images, pixels, cfg.PICTURE.CLASS, *how, names.__getitem__, shown.names, said)
    return [("gradient", image, heat_caption("", *how))]
