"""The tree of all configuration keys with their defaults: a few here, the sections in `keys/`.

Names and defaults are PySlowFast's wherever PySlowFast has the key (Fan et al., `slowfast/config/defaults.py`);
keys of ours follow the same style and are marked "ours"; `absent.py` has those of PySlowFast's that are not here.
`load.py` reads files into this tree, `validate.py` says which keys cannot act in a run, `plan.py` derives what follows
from them.
"""

from __future__ import annotations

from fvcore.common.config import CfgNode as CN

from mfm_core.config.keys import data, evaluation, methods, model, training

_C = CN()

# pretrain | finetune (PySlowFast's ssl and ssl_eval mean the same) | probe | knn. "" lets MODEL.MODEL_NAME decide.
# visualise (ours) draws pictures with the model that the other keys describe, see PICTURE.
_C.TASK = ""
# Everything a run writes goes under this folder.
_C.OUTPUT_DIR = "."
# Seeds weights, order, augmentation, masks and drop path.
_C.RNG_SEED = 1
# Processes on this machine, one GPU each. Without GPUs one process runs, unless DEVICE is cpu. 0 computes on the CPU.
_C.NUM_GPUS = 1
# Machines.
_C.NUM_SHARDS = 1
# Logging steps are this many optimizer steps apart.
_C.LOG_PERIOD = 10
# Log the table of `--dry-run` when training starts.
_C.LOG_MODEL_INFO = True
# ours: auto | cpu | cuda. With cpu, NUM_GPUS counts processes.
_C.DEVICE = "auto"

_C.DATA = data.DATA
_C.DATA_LOADER = data.DATA_LOADER
_C.AUG = data.AUG
_C.MIXUP = data.MIXUP
_C.MODEL = model.MODEL
_C.MVIT = model.MVIT
_C.RESNET = model.RESNET
_C.MASK = methods.MASK
_C.MFF = methods.MFF
_C.MFM = methods.MFM
_C.HOG = methods.HOG
_C.BN = model.BN
_C.SOLVER = training.SOLVER
_C.TRAIN = training.TRAIN
_C.TEST = evaluation.TEST
_C.MONITOR = evaluation.MONITOR
_C.KNN = evaluation.KNN
_C.PROBE = evaluation.PROBE
_C.PICTURE = evaluation.PICTURE
_C.DIST = training.DIST


def get_cfg() -> CN:
    """A fresh copy of all keys at their defaults."""
    return _C.clone()
