"""Every configuration key with its default and what it does.

Names and defaults are PySlowFast's wherever PySlowFast has the key (Fan et al., `slowfast/config/defaults.py`);
keys of ours follow the same style and are marked "ours". `load.py` reads files into this tree, `validate.py` says
which keys cannot act in a run, `plan.py` derives what follows from them.
"""

from __future__ import annotations

from fvcore.common.config import CfgNode as CN

_C = CN()

# pretrain | finetune (PySlowFast's ssl and ssl_eval mean the same) | probe | knn. "" lets MODEL.MODEL_NAME decide.
# visualise (ours) draws pictures with the model that the other keys describe, see PICTURE.
_C.TASK = ""
# Everything a run writes goes under this folder.
_C.OUTPUT_DIR = "."
# Seeds weights, order, augmentation, masks and drop path.
_C.RNG_SEED = 1
# Processes on this machine, one GPU each. Without GPUs one process runs, unless DEVICE is cpu.
_C.NUM_GPUS = 1
# Machines.
_C.NUM_SHARDS = 1
# Logging steps are this many optimizer steps apart.
_C.LOG_PERIOD = 10
# Log the table of `--dry-run` when training starts.
_C.LOG_MODEL_INFO = True
# ours: auto | cpu | cuda. With cpu, NUM_GPUS counts processes.
_C.DEVICE = "auto"

# ---------------------------------------------------------------- data
_C.DATA = CN()
# Holds train/<class>/ and val/<class>/ with images or videos; or lists of videos, train.csv, val.csv and test.csv.
_C.DATA.PATH_TO_DATA_DIR = ""
# Normalisation of RGB values in [0, 1].
_C.DATA.MEAN = [0.45, 0.45, 0.45]
_C.DATA.STD = [0.225, 0.225, 0.225]
# Channels of each input pathway; one pathway of 3.
_C.DATA.INPUT_CHANNEL_NUM = [3, 3]
# Side of the square training crop and evaluation crop, pixels.
_C.DATA.TRAIN_CROP_SIZE = 224
_C.DATA.TEST_CROP_SIZE = 256
# Evaluation resizes the short side to crop / ratio before the centre crop (see TEST.RESIZE_SIZES).
_C.DATA.IN_VAL_CROP_RATIO = 0.875
# ours: resized, a random resized crop (below) | padded, MFF's: short side resized, reflection padding, random window.
_C.DATA.TRAIN_CROP_TYPE = "resized"
# ours: the padded crop's short side (0 is TRAIN_CROP_SIZE) and padding on each side, pixels.
_C.DATA.TRAIN_RESIZE_SHORT_SIDE = 0
_C.DATA.TRAIN_CROP_PADDING = 4
# Random resized crop: range of area, and of aspect ratio. [] is timm's [0.08, 1] and [3/4, 4/3].
_C.DATA.TRAIN_JITTER_SCALES_RELATIVE = []
_C.DATA.TRAIN_JITTER_ASPECT_RELATIVE = []
# ours: a random crop that does not fit is clamped to the image (MAE's linear probe), not drawn again up to ten times.
_C.DATA.TRAIN_CROP_CLAMP = False
# ours: how evaluation resizes, bicubic | bilinear.
_C.DATA.TEST_INTERPOLATION = "bicubic"
# Flip half of the training images.
_C.DATA.RANDOM_FLIP = True
# ours: share of each class's training labels used, for fine-tuning with few labels.
_C.DATA.LABEL_FRACTION = 1.0
# ours: a run stops when more than this share of all its training files was found unreadable since it was (re)started.
_C.DATA.MAX_BAD_SHARE = 0.01
# Video: in each line of train.csv, val.csv and test.csv, what stands between path and label, and before each path.
_C.DATA.PATH_LABEL_SEPARATOR = " "
_C.DATA.PATH_PREFIX = ""
# Frames per clip, and how many frames they lie apart in a video of TARGET_FPS frames per second.
_C.DATA.NUM_FRAMES = 8
_C.DATA.SAMPLING_RATE = 8
_C.DATA.TARGET_FPS = 30
# What reads video files: pyav | decord, where it is exact | torchvision, which no longer can: pyav reads in its place.
_C.DATA.DECODING_BACKEND = "torchvision"
# Training frames are reduced to this short side, pixels, while they are decoded; 0 is not.
_C.DATA.DECODING_SHORT_SIZE = 256
# Range of the short side, pixels, before a random crop where none is relative (above); the first in tests of one crop.
_C.DATA.TRAIN_JITTER_SCALES = [256, 320]
# Clips taken of a video in each training step, decoded once.
_C.DATA.TRAIN_CROP_NUM_TEMPORAL = 1
# Test clips are spread from the beginning to the end of a video; one alone lies in the middle.
_C.DATA.USE_OFFSET_SAMPLING = False

_C.DATA_LOADER = CN()
# Loader processes per rank.
_C.DATA_LOADER.NUM_WORKERS = 8
_C.DATA_LOADER.PIN_MEMORY = True

# ---------------------------------------------------------------- augmentation
_C.AUG = CN()
# Switches on colour jitter, RandAugment and erasing; crop and flip stay on without it.
_C.AUG.ENABLE = False
# Views of each file in a batch, decoded once (repeated augmentation, Hoffer et al. 2020).
_C.AUG.NUM_SAMPLE = 1
# ours: each file comes this often in its batch, and an epoch of the usual length sees the fewer files (DeiT: 3).
_C.AUG.REPEATED_SAMPLER = 1
# Strength of brightness, contrast and saturation jitter; None is off. RandAugment replaces it.
_C.AUG.COLOR_JITTER = 0.4
# Augmentation policy in timm's notation; ra_M_N (ours) is torchvision's RandAugment, magnitude M of N; "" is off.
_C.AUG.AA_TYPE = "rand-m9-mstd0.5-inc1"
_C.AUG.INTERPOLATION = "bicubic"
# Random erasing: probability, fill (pixel | rand | const), rectangles; RE_SPLIT spares the first view.
_C.AUG.RE_PROB = 0.25
_C.AUG.RE_MODE = "pixel"
_C.AUG.RE_COUNT = 1
_C.AUG.RE_SPLIT = False
# PySlowFast's switch; masks are always made in the loader here.
_C.AUG.GEN_MASK_LOADER = False
# ours: how hidden tokens are drawn, block (images) | cube (clips) | random; "" is the method's own.
_C.AUG.MASK_TYPE = ""
# Share of the tokens that are hidden.
_C.AUG.MASK_RATIO = 0.0
# Largest block, in tokens; None is no bound.
_C.AUG.MAX_MASK_PATCHES_PER_BLOCK = None
# Video: what is hidden is hidden all the time (tubes), or whole frames are.
_C.AUG.MASK_TUBE = False
_C.AUG.MASK_FRAMES = False
# The window (t, h, w) that cubes and their tubes (h, w) and frames (t) are drawn in; it divides the token grid.
_C.AUG.MASK_WINDOW_SIZE = [8, 7, 7]

_C.MIXUP = CN()
_C.MIXUP.ENABLE = False
# Beta parameters of Mixup and CutMix; 0 is off.
_C.MIXUP.ALPHA = 0.8
_C.MIXUP.CUTMIX_ALPHA = 1.0
# Probability of mixing a batch, and of CutMix where both are on.
_C.MIXUP.PROB = 1.0
_C.MIXUP.SWITCH_PROB = 0.5
# ours: which two images are mixed, reverse (the first with the last, …) | next (each with the one before it).
_C.MIXUP.PARTNER = "reverse"
# Share of a label's probability that the classes get: all of them, or (ours) the others alone.
_C.MIXUP.LABEL_SMOOTH_VALUE = 0.1
_C.MIXUP.LABEL_SMOOTH_OVER = "all"
# ours: smooth labels without MIXUP.ENABLE, too.
_C.MIXUP.LABEL_SMOOTH_ALWAYS = False

# ---------------------------------------------------------------- model
_C.MODEL = CN()
# MaskMViT pre-trains, MViT classifies, "" leaves it to TASK (ours).
_C.MODEL.MODEL_NAME = "SlowFast"
# maskmvit | mvit | vit (ours): a ViT where MVIT.PATCH_2D is on. resnet (ours): see RESNET.
_C.MODEL.ARCH = "slowfast"
_C.MODEL.NUM_CLASSES = 400
# Dropout before the classifier.
_C.MODEL.DROPOUT_RATE = 0.5
# Pre-training: multi_mse. Fine-tuning: cross_entropy | soft_cross_entropy | bce (ours: a sigmoid for each class).
_C.MODEL.LOSS_FUNC = "cross_entropy"
# Recompute each block's activations in the backward pass instead of keeping them.
_C.MODEL.ACT_CHECKPOINT = False

_C.MVIT = CN()
# ours: Ti | S | B | L | H sets EMBED_DIM, DEPTH and NUM_HEADS together; "" reads those three.
_C.MVIT.SIZE = ""
_C.MVIT.EMBED_DIM = 96
_C.MVIT.DEPTH = 16
_C.MVIT.NUM_HEADS = 1
_C.MVIT.MLP_RATIO = 4.0
_C.MVIT.QKV_BIAS = True
# ours: a bias on the keys too; MAE-priv and MFM have none.
_C.MVIT.KEY_BIAS = True
_C.MVIT.NORM = "layernorm"
# Patch embedding on images (2-D) rather than clips; its kernel, stride and padding.
_C.MVIT.PATCH_2D = False
_C.MVIT.PATCH_KERNEL = [3, 7, 7]
_C.MVIT.PATCH_STRIDE = [2, 4, 4]
_C.MVIT.PATCH_PADDING = [2, 4, 4]
_C.MVIT.CLS_EMBED_ON = True
# Learned absolute positions, or the fixed sin-cos table. SEP_POS_EMBED: on clips, a table over space and one over time.
_C.MVIT.USE_ABS_POS = True
_C.MVIT.USE_FIXED_SINCOS_POS = False
_C.MVIT.SEP_POS_EMBED = False
# ours: what the first half of a sin-cos table's channels holds, in encoder and decoder: column (MAE) | row (MAE-priv).
_C.MVIT.SINCOS_FIRST = "column"
# Classifier: mean over the tokens, then norm; otherwise norm, then the class token.
_C.MVIT.USE_MEAN_POOLING = False
# ours: without mean pooling, start the classifier's norm afresh instead of taking the pre-trained encoder's (MAE-priv).
_C.MVIT.FRESH_NORM = False
# Stochastic depth of the last block; it grows linearly from 0.
_C.MVIT.DROPPATH_RATE = 0.1
# Initial value of learned per-channel scales on the residual branches; 0 is no such scales.
_C.MVIT.LAYER_SCALE_INIT_VALUE = 0.0
# Classifier weights start multiplied by this.
_C.MVIT.HEAD_INIT_SCALE = 1.0
# ours: their standard deviation before that (MAE: 2e-5), and the biases' start, the norm's too (0 but in PySlowFast).
_C.MVIT.HEAD_INIT_STD = 0.02
_C.MVIT.HEAD_INIT_BIAS = 0.02
# No weight decay on class token and positions.
_C.MVIT.ZERO_DECAY_POS_CLS = True
# Multiscale stages: pooling attention, its strides and kernels, relative positions.
_C.MVIT.MODE = "conv"
# [block, factor]: what multiplies width and heads, the width in the MLP of the block before it.
_C.MVIT.DIM_MUL = []
_C.MVIT.HEAD_MUL = []
# The width changes in the attention of the block that DIM_MUL names, not in the MLP before it.
_C.MVIT.DIM_MUL_IN_ATT = False
# Kernel of all poolings; None is one more than each stride.
_C.MVIT.POOL_KVQ_KERNEL = None
# Strides of keys and values: of the first block, divided by each query stride on the way | [block, t, h, w] each.
_C.MVIT.POOL_KV_STRIDE_ADAPTIVE = None
_C.MVIT.POOL_KV_STRIDE = []
# Strides of queries, [block, t, h, w] each; blocks that are not named pool no queries.
_C.MVIT.POOL_Q_STRIDE = []
# Dropout behind positions, attention and MLP of the multiscale model.
_C.MVIT.DROPOUT_RATE = 0.0
_C.MVIT.REL_POS_SPATIAL = False
_C.MVIT.REL_POS_TEMPORAL = False
_C.MVIT.RESIDUAL_POOLING = False

# The ResNet (bottleneck blocks, stride on the 3x3 convolution).
_C.RESNET = CN()
# 50 | 101 | 152
_C.RESNET.DEPTH = 50
# ours: the last BatchNorm of each block starts at zero, so that blocks start as the identity.
_C.RESNET.ZERO_INIT = True

_C.MASK = CN()
_C.MASK.ENABLE = False
# ours: maskfeat | mae | mff | mfm; "" lets MASK.MAE_ON and MASK.PRED_HOG decide, as in PySlowFast.
_C.MASK.METHOD = ""
# ours: what is predicted, hog | pixel | spectrum; "" is the method's own.
_C.MASK.TARGET = ""
# Predict HOG (MaskFeat).
_C.MASK.PRED_HOG = False
# Blocks whose outputs are predicted from, one head each; their losses add up.
_C.MASK.PRETRAIN_DEPTH = [15]
# separate: norm and linear layer. separate_xformer: a transformer decoder (MAE).
_C.MASK.HEAD_TYPE = "separate"
_C.MASK.MAE_ON = False
_C.MASK.MAE_RND_MASK = False
# ours: what is rounded down where every image hides the same number of tokens, visible (MAE) | hidden (MAE-priv).
_C.MASK.COUNT = "visible"
_C.MASK.DECODER_DEPTH = 0
_C.MASK.DECODER_EMBED_DIM = 512
# ours: 0 is one head for each 64 channels.
_C.MASK.DECODER_NUM_HEADS = 0
# ours: whether the decoder's blocks see the class token (MAE) or not (MAE-priv).
_C.MASK.DECODER_CLS_TOKEN = True
# Video: learned positions of the decoder in two tables, over space and over time.
_C.MASK.DECODER_SEP_POS_EMBED = False
# Video: predict the pixels of the first frame of each patch alone.
_C.MASK.TIME_STRIDE_LOSS = True
# Normalise the pixels of each patch by its own mean and variance.
_C.MASK.NORM_PRED_PIXEL = True
# ours: order of a patch's pixels, hwc (MAE) | chw (MAE-priv), and its variance, unbiased (MAE) | biased (MAE-priv).
_C.MASK.PIXEL_ORDER = "hwc"
_C.MASK.PIXEL_VARIANCE = "unbiased"

# ours: MFF, MAE with fused layers.
_C.MFF = CN()
# Blocks whose outputs are fused into the last one's, which joins by itself.
_C.MFF.LAYERS = [0, 2, 4, 6, 8]

# ours: MFM, masked frequency modelling, and its siblings.
_C.MFM = CN()
# What is done to the input: frequency | sr | deblur | denoise.
_C.MFM.CORRUPTION = "frequency"
# frequency: low frequencies are nearer to the centre than RADIUS, or at least RADIUS_OUTER away from it.
_C.MFM.RADIUS = 16.0
_C.MFM.RADIUS_OUTER = 999.0
# Probability that the encoder sees the low frequencies of an image, and not the high ones.
_C.MFM.LOW_PASS_RATIO = 0.5
# The centre: dc, the frequency zero. half: half the image's size, also where that is odd (CoinCheung/MFM).
_C.MFM.CENTRE = "dc"
# clamped: pixels are filtered and clamped to [0, 1]. magnitude: of the filtered normalised image (CoinCheung/MFM).
_C.MFM.FILTER = "clamped"
# sr: the image is made this many times smaller, and enlarged again.
_C.MFM.SR_FACTOR = 8
# deblur: kernel sizes, drawn evenly; kinds (iso | aniso | generalized_iso | generalized_aniso | plateau_iso |
# plateau_aniso | sinc) and their probabilities; ranges of what shapes them (pixels, radians, exponents).
_C.MFM.BLUR_KERNEL_SIZE = [7, 9, 11, 13, 15, 17, 19, 21]
_C.MFM.BLUR_KERNEL_LIST = [
    *("iso", "aniso", "generalized_iso", "generalized_aniso", "plateau_iso", "plateau_aniso", "sinc"),
]
_C.MFM.BLUR_KERNEL_PROB = [0.405, 0.225, 0.108, 0.027, 0.108, 0.027, 0.1]
_C.MFM.BLUR_SIGMA_X = [0.2, 3.0]
_C.MFM.BLUR_SIGMA_Y = [0.2, 3.0]
_C.MFM.BLUR_ROTATE_ANGLE = [-3.1416, 3.1416]
_C.MFM.BLUR_BETA_GAUSSIAN = [0.5, 4.0]
_C.MFM.BLUR_BETA_PLATEAU = [1.0, 2.0]
# denoise: kinds (gaussian | poisson) and their probabilities; range of the Gaussian's standard deviation (8-bit
# levels) and of the factor on Poisson noise; probability of noise without colour.
_C.MFM.NOISE_TYPE = ["gaussian", "poisson"]
_C.MFM.NOISE_PROB = [0.5, 0.5]
_C.MFM.NOISE_GAUSSIAN_SIGMA = [1.0, 30.0]
_C.MFM.NOISE_GAUSSIAN_GREY_PROB = 0.4
_C.MFM.NOISE_POISSON_SCALE = [0.05, 3.0]
_C.MFM.NOISE_POISSON_GREY_PROB = 0.4
# MASK.TARGET spectrum: predict the grey image, one channel (CoinCheung/MFM).
_C.MFM.GREY = False
# Its loss |difference|^LOSS_GAMMA, LOSS_EPS under the root, is averaged over: masked, the batch's hidden frequencies.
# normal: all. sample: each image's hidden ones, then the images. "": masked where frequencies are hidden, else normal.
_C.MFM.LOSS_REDUCTION = ""
_C.MFM.LOSS_GAMMA = 1.0
_C.MFM.LOSS_EPS = 1e-12
# Spectra of PATCH_FACTOR x PATCH_FACTOR pieces of the image; averaged over the batch first.
_C.MFM.PATCH_FACTOR = 1
_C.MFM.AVE_SPECTRUM = False
# Weigh each frequency by |difference|^MATRIX_GAMMA (by the log of it), over its maximum in the image (in the batch).
_C.MFM.WITH_MATRIX = False
_C.MFM.MATRIX_GAMMA = 1.0
_C.MFM.LOG_MATRIX = False
_C.MFM.BATCH_MATRIX = False

# ours: the HOG target (PySlowFast's constants are the defaults).
_C.HOG = CN()
_C.HOG.BINS = 9
# Side of a cell, pixels; it divides the patch.
_C.HOG.CELL = 8
# Side of the Gaussian window on the magnitudes, pixels; 0 is none.
_C.HOG.GAUSSIAN_WINDOW = 0

# PySlowFast's precise BatchNorm statistics: not computed here, a ResNet is evaluated with its running ones.
_C.BN = CN()
_C.BN.USE_PRECISE_STATS = False
_C.BN.NUM_BATCHES_PRECISE = 200

# ---------------------------------------------------------------- optimisation
_C.SOLVER = CN()
# adamw | sgd | lars (ours)
_C.SOLVER.OPTIMIZING_METHOD = "sgd"
_C.SOLVER.BASE_LR = 0.1
# Multiply base, end and warm-up start learning rate by NUM_SHARDS.
_C.SOLVER.BASE_LR_SCALE_NUM_SHARDS = False
# ours: the learning rates are meant for this many files per step and grow with the batch in proportion; 0 is off.
_C.SOLVER.LR_REFERENCE_BATCH = 0
# ours: what LR_REFERENCE_BATCH scales: base (BASE_LR alone, MAE) | all (WARMUP_START_LR and COSINE_END_LR too, MFM).
_C.SOLVER.LR_REFERENCE_SCALES = "base"
# ours: the learning rate changes between epochs only, not at each step.
_C.SOLVER.LR_PER_EPOCH = False
# ours: the learning rate of each step is the one meant for this many steps before it (MFM: 1).
_C.SOLVER.LR_LAG_STEPS = 0
# cosine | constant (ours)
_C.SOLVER.LR_POLICY = "cosine"
_C.SOLVER.MAX_EPOCH = 300
_C.SOLVER.COSINE_END_LR = 0.0
# ours: COSINE_END_LR and WARMUP_START_LR hold as they are for every layer; else layer decay lowers them, too.
_C.SOLVER.COSINE_END_LR_ABSOLUTE = False
_C.SOLVER.WARMUP_START_LR_ABSOLUTE = False
# The half-cosine starts at the end of warm-up instead of at epoch 0.
_C.SOLVER.COSINE_AFTER_WARMUP = False
_C.SOLVER.WARMUP_EPOCHS = 0.0
_C.SOLVER.WARMUP_START_LR = 0.01
# ours: warm-up leads to BASE_LR, where a cosine from epoch 0 has already left it (COSINE_AFTER_WARMUP False).
_C.SOLVER.WARMUP_TO_BASE_LR = False
# ours: warm-up gets there at its own last step (MAE-priv, mmpretrain), not at the step after it.
_C.SOLVER.WARMUP_INCLUSIVE = False
_C.SOLVER.BETAS = (0.9, 0.999)
_C.SOLVER.MOMENTUM = 0.9
_C.SOLVER.DAMPENING = 0.0
_C.SOLVER.NESTEROV = True
# ours: LARS adapts the steps of biases and gains, too (mmpretrain); otherwise they take plain momentum SGD (MAE).
_C.SOLVER.LARS_ADAPT_1D = False
_C.SOLVER.WEIGHT_DECAY = 1e-4
# No weight decay on 1-D parameters (norms and biases).
_C.SOLVER.ZERO_WD_1D_PARAM = False
# ours: tables without weight decay, of cls_token, pos_embed and mask_token, where the model has them.
_C.SOLVER.NO_DECAY = []
# Learning rate of block i is multiplied by LAYER_DECAY^(depth - i).
_C.SOLVER.LAYER_DECAY = 1.0
# Clip each gradient value, or the norm of all gradients together; None is off.
_C.SOLVER.CLIP_GRAD_VAL = None
_C.SOLVER.CLIP_GRAD_L2NORM = None

_C.TRAIN = CN()
_C.TRAIN.ENABLE = True
# imagenet: an image folder. kinetics: lists of videos.
_C.TRAIN.DATASET = "kinetics"
# Files per optimizer step on one machine, over its NUM_GPUS processes.
_C.TRAIN.BATCH_SIZE = 64
# ours: cut each step's batch into this many pieces to save memory; the loss is still the mean over all of it.
_C.TRAIN.ACCUM_STEPS = 1
# Epochs between evaluations and between checkpoints; the last epoch has both.
_C.TRAIN.EVAL_PERIOD = 10
_C.TRAIN.CHECKPOINT_PERIOD = 10
# ours: steps between checkpoints inside an epoch (0 is none), and how many of the newest checkpoints stay (0 is all).
_C.TRAIN.CHECKPOINT_STEPS = 0
_C.TRAIN.CHECKPOINT_KEEP = 0
# Continue from the newest checkpoint in OUTPUT_DIR.
_C.TRAIN.AUTO_RESUME = True
# Start from these weights.
_C.TRAIN.CHECKPOINT_FILE_PATH = ""
# Take only the weights and start at epoch 0; otherwise a checkpoint of the same task is continued.
_C.TRAIN.CHECKPOINT_EPOCH_RESET = False
# ours: CHECKPOINT_FILE_PATH must fill at least this share of the backbone's parameters.
_C.TRAIN.CHECKPOINT_MIN_MATCH = 0.5
# Mixed precision where PRECISION is auto and the device has no bfloat16 (fp16).
_C.TRAIN.MIXED_PRECISION = False
# ours: auto | fp32 | bf16 | fp16. auto is bf16 where the device computes in it.
_C.TRAIN.PRECISION = "auto"
# ours: torch.compile the model.
_C.TRAIN.COMPILE = False
# ours: decay of an exponential moving average of the weights, which evaluation then uses; 0 is none.
_C.TRAIN.EMA_DECAY = 0.0
# Stop when the loss exceeds this multiple of its running mean; 0 is off.
_C.TRAIN.KILL_LOSS_EXPLOSION_FACTOR = 0.0
# ours: what a step with a NaN or infinite gradient does, stop | skip. It never reaches the weights.
_C.TRAIN.NONFINITE = "stop"
# ours: save and leave after this many optimizer steps in all; 0 is never.
_C.TRAIN.STOP_STEP = 0

_C.TEST = CN()
# Evaluate on the validation images where TRAIN.ENABLE is off; TASK knn does nothing else.
_C.TEST.ENABLE = True
_C.TEST.DATASET = "kinetics"
_C.TEST.BATCH_SIZE = 8
# Weights to test where nothing is trained; "" is the newest checkpoint in OUTPUT_DIR.
_C.TEST.CHECKPOINT_FILE_PATH = ""
# ours: short sides, in pixels, that evaluation resizes images to before the crop; [] follows IN_VAL_CROP_RATIO. The
# first counts; with several, accuracy at each is listed after the last epoch and when testing.
_C.TEST.RESIZE_SIZES = []
# Views of a video.
_C.TEST.NUM_ENSEMBLE_VIEWS = 10
_C.TEST.NUM_SPATIAL_CROPS = 3
_C.TEST.NUM_TEMPORAL_CLIPS = []

# ours: what a pre-training run shows of its health, and a fine-tuning run of its data.
_C.MONITOR = CN()
# Epochs between looks at the fixed validation images (loss with fixed masks, rank and spread of the features).
_C.MONITOR.PERIOD = 1
_C.MONITOR.NUM_IMAGES = 256
# Epochs between pictures, and how many images they show; 0 is none. The last epoch has one, in fine-tuning it alone.
_C.MONITOR.PICTURE_PERIOD = 10
_C.MONITOR.NUM_PICTURES = 6

# ours: k-nearest-neighbour accuracy of frozen features (Wu et al. 2018).
_C.KNN = CN()
# Epochs between evaluations during pre-training; 0 is none. The last epoch has one.
_C.KNN.PERIOD = 0
_C.KNN.K = [20]
_C.KNN.TEMPERATURE = 0.07
# K is a list, one accuracy each. Training images used as neighbours, drawn evenly over the classes; 0 is all.
_C.KNN.NUM_TRAIN = 0
# TASK knn reads: mean (of the patch tokens, each normalised) | mean_raw (as they are) | cls (the class token after the
# checkpoint's final norm) | cls_raw (as it is).
_C.KNN.FEATURES = "mean"
# TASK knn reloads OUTPUT_DIR's saved features where they are of the same weights, model and files.
_C.KNN.REUSE_FEATURES = True

# ours: linear probing, TASK probe. MVIT.USE_MEAN_POOLING chooses what it reads, mean over the tokens or class token.
_C.PROBE = CN()
# Learning rates that are probed in one pass, a linear layer each; [] is SOLVER.BASE_LR alone. Warm-up start and end of
# the schedule scale with them, as SOLVER.WARMUP_START_LR and COSINE_END_LR do with SOLVER.BASE_LR.
_C.PROBE.LRS = []
# A ViT's read-out has a LayerNorm: the pre-trained one for the class token, otherwise one without effect of its own.
_C.PROBE.LAYER_NORM = True
# BatchNorm without affine between the frozen features and the linear layer, and its epsilon.
_C.PROBE.BATCH_NORM = True
_C.PROBE.BATCH_NORM_EPS = 1e-6

# ours: what TASK visualise draws, with the weights of TEST.CHECKPOINT_FILE_PATH or OUTPUT_DIR's newest checkpoint.
_C.PICTURE = CN()
# reconstruction (pre-training), attention (ViT), gradient (ViT classifier), neighbours; all is what the model allows.
_C.PICTURE.KIND = ["all"]
# An image file, or a folder whose files are shown, at any depth; "" is validation images of DATA.PATH_TO_DATA_DIR.
_C.PICTURE.INPUT = ""
# Images shown, chosen evenly.
_C.PICTURE.NUM_IMAGES = 8
# Attention rollout: how heads are joined, mean | max | min. Fine-tuning's report shows it, too.
_C.PICTURE.HEAD_FUSION = "mean"
# Share of the smallest attention of each block that is dropped, and the block that is shown; -1 is all of them.
_C.PICTURE.DISCARD_RATIO = 0.0
_C.PICTURE.LAYER = -1
# Gradient rollout: the class that it explains; -1 is the likeliest of each image.
_C.PICTURE.CLASS = -1
# Neighbours of each image; pre-training's report shows them where KNN.PERIOD is on.
_C.PICTURE.NUM_NEIGHBOURS = 6
# Seeds the masks.
_C.PICTURE.SEED = 0

# ours: distribution over processes.
_C.DIST = CN()
# auto: ddp where there are several processes | single | ddp
_C.DIST.STRATEGY = "auto"
# Seconds after which a collective operation that does not complete ends the run.
_C.DIST.TIMEOUT = 1800.0


def get_cfg() -> CN:
    """A fresh copy of all keys at their defaults."""
    return _C.clone()
