"""Keys that cannot act in a run: each that is set is warned of by name, with the reason."""

from __future__ import annotations

from collections.abc import Iterator

from fvcore.common.config import CfgNode

from mfm_core.config.defaults import get_cfg
from mfm_core.config.idle_model import MODEL_RULES
from mfm_core.config.idle_run import RUN_RULES
from mfm_core.config.load import flatten, value_of
from mfm_core.config.plan import modality_of, target_of, task_of

ALREADY_TRUE = {
    # Values that say what is the case anyway where the key cannot act; no reason to warn of PySlowFast's own files.
    "DATA.NUM_FRAMES": 1,
    "TEST.NUM_SPATIAL_CROPS": 1,
    "MONITOR.NUM_PICTURES": 0,
    "MONITOR.PICTURE_PERIOD": 0,
    "MVIT.MODE": "conv",
    "MODEL.DROPOUT_RATE": 0.0,
    "MVIT.DROPPATH_RATE": 0.0,
    "AUG.AA_TYPE": "",
    "AUG.COLOR_JITTER": None,
    "AUG.RE_PROB": 0.0,
}
UNTRAINED = ("MASK", "MFM", "HOG", "MONITOR", "PROBE", "SOLVER", "AUG", "MIXUP", "TRAIN", "BN")
"""Sections that cannot act where nothing is trained, but for these keys."""
UNTRAINED_TOO = ("TRAIN.ENABLE", "TRAIN.DATASET", "TRAIN.PRECISION", "TRAIN.MIXED_PRECISION")


def warnings(cfg: CfgNode) -> Iterator[str]:
    """One for each key that is set and cannot act."""
    silent = set()
    if task_of(cfg) == "knn":
        keys = [key for key, _ in flatten(get_cfg()) if key.split(".")[0] in UNTRAINED and key not in UNTRAINED_TOO]
        silent = {warning.split()[0] for warning in _name(cfg, tuple(keys), "")}
        if silent:
            yield f"{', '.join(sorted(silent))} cannot act: TASK knn trains nothing."
    for holds, why, keys in (*MODEL_RULES, *RUN_RULES):
        if holds(cfg):
            yield from _name(cfg, tuple(key for key in keys if key not in silent), why)
    if target_of(cfg) == "spectrum" and task_of(cfg) == "pretrain" and cfg.NUM_GPUS * cfg.NUM_SHARDS > 1:
        for key in ("MFM.AVE_SPECTRUM", "MFM.BATCH_MATRIX"):
            if value_of(cfg, key):
                yield f"{key} True makes a loss over each process's own images; the result depends on their number."
    if modality_of(cfg) == "video" and cfg.DATA.DECODING_BACKEND == "torchvision":
        yield "DATA.DECODING_BACKEND torchvision: torchvision no longer reads videos; PyAV does in its place (pyav)."
    if task_of(cfg) == "pretrain" and not cfg.AUG.GEN_MASK_LOADER and not cfg.MASK.MAE_RND_MASK:
        yield "AUG.GEN_MASK_LOADER False has no effect: masks are always made in the loader."


def _name(cfg: CfgNode, keys: tuple[str, ...], why: str) -> Iterator[str]:
    default = dict(flatten(get_cfg()))
    for key in keys:
        value = value_of(cfg, key)
        if value != default[key] and not (key in ALREADY_TRUE and value == ALREADY_TRUE[key]):
            yield f"{key} {value} {why}."
