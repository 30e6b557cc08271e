"""Our recipe files shrunk to the sizes of golden cases, so that published weights go through the files themselves.

An override here gives a size, or a number that a case chose for itself and that other tests compare by name. What a
file says of conventions (orders, variances, tokens, read-outs, biases, norms) is left to the file.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fvcore.common.config import CfgNode
from golden_cases import OWN, cases
from paths import CONFIGS
from torch import Tensor, nn

from mfm_core.checkpoint.init_from import init_from
from mfm_core.config import load_config
from mfm_core.config.load import value_of
from mfm_core.data.crops import Normalize

MAE_PT, MAE_FT, MAE_PROBES = "mae/in1k_VIT_?_1?_PT_*", "mae/in1k_VIT_?_MAE_FT", "probe/mae_VIT_?"
PRIV_GAP_PT, PRIV_CLS_PT = "mae/priv_VIT_?_GAP_*PT_*", "mae/priv_VIT_?_CLS_PT_*"
PRIV_GAP_FT, PRIV_CLS_FT = "mae/in1k_VIT_?_MAEpriv_GAP_*FT", "mae/in1k_VIT_?_MAEpriv_CLS_*FT"
PRIV_GAP_PROBES, PRIV_CLS_PROBES = "probe/mae_priv_VIT_?_*GAP*", "probe/mae_priv_VIT_?_*CLS-Token"
MFF_PT, MFF_FT, MFF_PROBE = "mff/in1k_VIT_?_MFF_PT_*", "mff/in1k_VIT_?_MFF_FT", "probe/mff_VIT_?"
MFM_VIT, MFM_RESNET, MFM_FT = "mfm/mfm_pretrain__vit_*", "mfm/mfm_pretrain__resnet*", "mfm/in1k_VIT_?_MFM_FT"
SR, DEBLUR, DENOISE = (f"mfm/{name}_pretrain__*" for name in ("sr", "deblur", "denoise"))
COINCHEUNG = "mfm/coincheung__*"
MASKFEAT_PT, MASKFEAT_FT = (f"masked_ssl/in1k_VIT_?_MaskFeat_{kind}" for kind in ("PT", "FT"))
COVERED = (
    *(MAE_PT, MAE_FT, MAE_PROBES, PRIV_GAP_PT, PRIV_CLS_PT, PRIV_GAP_FT, PRIV_CLS_FT, PRIV_GAP_PROBES),
    *(PRIV_CLS_PROBES, MFF_PT, MFF_FT, MFF_PROBE, MFM_VIT, MFM_RESNET, MFM_FT, SR, DEBLUR, DENOISE, COINCHEUNG),
    *(MASKFEAT_PT, MASKFEAT_FT),
)
WITHOUT_CASE = {"in1k_R50_MFM_100e_FT", "in1k_R50_MFM_300e_FT"}
"""torchvision's ResNet, which no golden case classifies with."""


def files(*patterns: str) -> list[Path]:
    """The recipes of configs/ that match any of these, "mae/in1k_VIT_*_FT"; without what others only start from."""
    found = sorted({path for pattern in patterns for path in CONFIGS.glob(f"{pattern}.yaml")})
    found = [path for path in found if not path.stem.endswith("base")]
    assert found, patterns
    return found


def each(*words: str) -> Callable:
    """Parametrises a test by every golden case `folder` of a kind and the `path` of every recipe that it is for.

    words: a kind, the pattern of its recipes, and perhaps another kind and pattern.
    """
    kinds = zip(words[::2], words[1::2], strict=True)
    pairs = [(folder, path) for kind, pattern in kinds for folder in cases(kind) for path in files(pattern)]
    ids = [f"{folder.name}-{path.stem}" for folder, path in pairs]
    return pytest.mark.parametrize(("folder", "path"), pairs, ids=ids)


def only_if(fits: bool, folder: Path) -> None:
    """Skips a case of another folder than ours that says of itself that it is no case of the recipe; ours all are."""
    if not fits and OWN not in folder.parents:
        pytest.skip("a case with other conventions, or of another recipe")


def same_conventions(cfg: CfgNode, config: dict, names: dict[str, str]) -> bool:
    """Whether a case of PySlowFast has the file's values of these keys (KEY -> the case's name for it)."""
    return all(value_of(cfg, key) == config[name] for key, name in names.items())


def shrunk(path: Path, **sizes: object) -> CfgNode:
    """The file's configuration with these SECTION__KEY=values."""
    pairs = ((name.replace("__", ".", 1), str(value)) for name, value in sizes.items())
    return load_config(str(path), [word for pair in pairs for word in pair])


def vit_sizes(image: int, patch: int, width: int, depth: int, heads: int, mlp_ratio: float) -> dict[str, object]:
    """Overrides for a ViT on images of this size."""
    return {
        "DATA__TRAIN_CROP_SIZE": image,
        "DATA__TEST_CROP_SIZE": image,
        "MVIT__SIZE": "",
        "MVIT__PATCH_KERNEL": [patch, patch],
        "MVIT__PATCH_STRIDE": [patch, patch],
        "MVIT__EMBED_DIM": width,
        "MVIT__DEPTH": depth,
        "MVIT__NUM_HEADS": heads,
        "MVIT__MLP_RATIO": float(mlp_ratio),
    }


def check_computed(cfg: CfgNode, model: nn.Module, **expected: Tensor) -> None:
    """The position tables that a model computes and does not train are these, before anything is loaded over them.

    backbone, head: of the encoder and of the decoder; one that is not given is trained, or is not there.
    """
    found = dict(model.named_parameters()) if cfg.MVIT.USE_FIXED_SINCOS_POS else {}
    tables = {name: p.detach() for name, p in found.items() if "pos_embed" in name and not p.requires_grad}
    assert set(tables) == {f"{part}.pos_embed" for part in expected}
    for part, table in expected.items():
        torch.testing.assert_close(tables[f"{part}.pos_embed"], table, rtol=0, atol=1e-5)


def content(weights: Path) -> dict[str, Tensor]:
    """The tensors of a released file."""
    file = torch.load(weights, weights_only=True)
    return next(file[key] for key in ("model", "state_dict", "model_state") if key in file)


def start_whole(model: nn.Module, weights: Path) -> None:
    """Loads a released file; file and model have the same numbers, no tensor or part of one without counterpart."""
    report = init_from(model, str(weights))
    assert not (report.missing or report.unused or report.other_shape or report.resampled), report
    states = (content(weights), model.state_dict())
    theirs, ours = (sum(t.numel() for t in state.values() if t.is_floating_point()) for state in states)
    assert ours == theirs


def close(case) -> dict[str, float]:
    return {key: case["tolerance"][key] for key in ("rtol", "atol")}


def sizes_of(config: dict, prefix: str = "") -> dict[str, object]:
    """Of a case of MAE, MAE-priv or MFM."""
    names = ("embed_dim", "depth", "num_heads")
    image = config.get("img_size") or config["image_size"]
    return vit_sizes(image, config["patch_size"], *(config[prefix + name] for name in names), config["mlp_ratio"])


def mm_sizes(backbone: dict) -> dict[str, object]:
    """Of a backbone as mmpretrain describes it."""
    arch = backbone["arch"]
    ratio = arch["feedforward_channels"] / arch["embed_dims"]
    shape = (arch["embed_dims"], arch["num_layers"], arch["num_heads"], ratio)
    return vit_sizes(backbone["img_size"], backbone["patch_size"], *shape)


def normalised(cfg, pixels: Tensor) -> Tensor:
    """Pixels from 0 to 255 (B, 3, H, W) as the recipe's model sees them."""
    return torch.stack([Normalize(cfg.DATA.MEAN, cfg.DATA.STD)(image) for image in pixels])


def mm_images(cfg, pixels: Tensor, images: Tensor) -> Tensor:
    """The case's pixels as the file has them normalised: as the case has them."""
    ours = normalised(cfg, pixels)
    torch.testing.assert_close(ours, images, rtol=1e-5, atol=1e-5)
    return ours


def start_released(model, folder) -> None:
    """As `start_whole`, for a file of PySlowFast that may hold constants of its HOG."""
    report = init_from(model, str(folder / "weights.pyth"))
    assert not (report.missing or report.unused or report.other_shape or report.resampled), report


def maskfeat_sizes(config: dict) -> dict[str, object]:
    shape = (config[key] for key in ("embed_dim", "depth", "num_heads", "mlp_ratio"))
    return vit_sizes(config["image_size"], config["patch_stride"][0], *shape)
