"""PySlowFast's keys that do not exist here: their defaults there, which ask for nothing, and what to do instead.

Of the sections that its files of masked pre-training use. A file may write any of them out with its default.
"""

from __future__ import annotations

from typing import Any

_NO_SUCH_AUGMENTATION = "no such augmentation here; there are AUG.COLOR_JITTER, AUG.AA_TYPE, AUG.RE_PROB and MIXUP"
_NO_STEPS = "no learning rate in steps here; SOLVER.LR_POLICY is cosine or constant"
_OWN_SSL = "contrastive pre-training, whose augmentation this is, does not exist here"
_NO_POOLING = "decoders here do not pool"
_WHOLE_LIST = "lists are read whole here, and each process reads the files of its share"
_NO_IN22K = "ImageNet-22k has no reader of its own here; DATA.PATH_TO_DATA_DIR takes any folder with train/ and val/"
_BY_KEYS = "released files are recognised here, whoever wrote them, and their names are translated; the log lists them"

ABSENT: dict[str, tuple[Any, str]] = {
    "DATA.COLOR_RND_GRAYSCALE": (0.0, _NO_SUCH_AUGMENTATION),
    "DATA.DUMMY_LOAD": (False, "no invented data here; tools/benchmark_step.py times steps without files"),
    "DATA.IN22K_TRAINVAL": (False, _NO_IN22K),
    "DATA.IN22k_VAL_IN1K": ("", _NO_IN22K),
    "DATA.INV_UNIFORM_SAMPLE": (False, "clips are sampled at DATA.SAMPLING_RATE and DATA.TARGET_FPS here"),
    "DATA.LOADER_CHUNK_OVERALL_SIZE": (0, _WHOLE_LIST),
    "DATA.LOADER_CHUNK_SIZE": (0, _WHOLE_LIST),
    "DATA.MULTI_LABEL": (False, "a file has one label here"),
    "DATA.PATH_TO_PRELOAD_IMDB": ("", "DATA.PATH_TO_DATA_DIR alone says where files are"),
    "DATA.REVERSE_INPUT_CHANNEL": (False, "inputs are always RGB here"),
    "DATA.SKIP_ROWS": (0, "lists are read from their first line on"),
    "DATA.SSL_BLUR_SIGMA_MAX": ([0.0, 2.0], _OWN_SSL),
    "DATA.SSL_BLUR_SIGMA_MIN": ([0.0, 0.1], _OWN_SSL),
    "DATA.SSL_COLOR_BRI_CON_SAT": ([0.4, 0.4, 0.4], _OWN_SSL),
    "DATA.SSL_COLOR_HUE": (0.1, _OWN_SSL),
    "DATA.SSL_COLOR_JITTER": (False, _OWN_SSL),
    "DATA.SSL_MOCOV2_AUG": (False, _OWN_SSL),
    "DATA.TIME_DIFF_PROB": (0.0, _OWN_SSL),
    "DATA.TRAIN_CROP_NUM_SPATIAL": (1, "AUG.NUM_SAMPLE and DATA.TRAIN_CROP_NUM_TEMPORAL give several views of a file"),
    "DATA.TRAIN_JITTER_FPS": (0.0, "DATA.TARGET_FPS is the same for all clips here"),
    "DATA.TRAIN_JITTER_MOTION_SHIFT": (False, "crops stay where they are for a whole clip here"),
    "DATA.TRAIN_PCA_EIGVAL": ([0.225, 0.224, 0.229], _NO_SUCH_AUGMENTATION),
    "DATA.TRAIN_PCA_EIGVEC": (
        [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.814], [-0.5836, -0.6948, 0.4203]],
        _NO_SUCH_AUGMENTATION,
    ),
    "DATA_LOADER.ENABLE_MULTI_THREAD_DECODE": (False, "DATA_LOADER.NUM_WORKERS says how many processes decode"),
    "MASK.DEC_KV_KERNEL": ([], _NO_POOLING),
    "MASK.DEC_KV_STRIDE": ([], _NO_POOLING),
    "MASK.PER_FRAME_MASKING": (False, "clips are masked by cubes, tubes (AUG.MASK_TUBE) or frames (AUG.MASK_FRAMES)"),
    "MASK.SCALE_INIT_BY_DEPTH": (False, "MASK.INIT names the starts that there are"),
    "MVIT.NORM_STEM": (False, "no norm follows the patch embedding here"),
    "MVIT.POOL_FIRST": (False, "queries, keys and values are pooled after their projection here"),
    "MVIT.REL_POS_ZERO_INIT": (False, "tables of relative positions start truncated normal here"),
    "MVIT.SEPARATE_QKV": (False, "one layer gives queries, keys and values here; checkpoints with three are joined"),
    "SOLVER.GAMMA": (0.1, _NO_STEPS),
    "SOLVER.LARS_ON": (False, "SOLVER.OPTIMIZING_METHOD lars chooses LARS"),
    "SOLVER.LRS": ([], _NO_STEPS),
    "SOLVER.STEPS": ([], _NO_STEPS),
    "SOLVER.STEP_SIZE": (1, _NO_STEPS),
    "SOLVER.WARMUP_FACTOR": (0.1, "SOLVER.WARMUP_START_LR says where warm-up starts"),
    "TEST.CHECKPOINT_TYPE": ("pytorch", _BY_KEYS),
    "TEST.SAVE_RESULTS_PATH": ("", "a test always saves its scores, as test_scores_N.safetensors in OUTPUT_DIR"),
    "TRAIN.CHECKPOINT_CLEAR_NAME_PATTERN": ([], _BY_KEYS),
    "TRAIN.CHECKPOINT_INFLATE": (False, "weights of image models are inflated wherever the model takes clips"),
    "TRAIN.CHECKPOINT_IN_INIT": (False, "TRAIN.CHECKPOINT_FILE_PATH alone says what training starts from"),
    "TRAIN.CHECKPOINT_TYPE": ("pytorch", _BY_KEYS),
}
"""Key -> its default in PySlowFast, and the end of the line that refuses any other value."""
