"""Keys of what is read, how it is augmented, and how labels are mixed."""

from fvcore.common.config import CfgNode as CN

DATA = CN()
# Holds train/<class>/ and val/<class>/ with images or videos; or lists of videos, train.csv, val.csv and test.csv.
DATA.PATH_TO_DATA_DIR = ""
# Normalisation of RGB values in [0, 1].
DATA.MEAN = [0.45, 0.45, 0.45]
DATA.STD = [0.225, 0.225, 0.225]
# Channels of each input pathway; one pathway of 3.
DATA.INPUT_CHANNEL_NUM = [3, 3]
# Side of the square training crop and evaluation crop, pixels.
DATA.TRAIN_CROP_SIZE = 224
DATA.TEST_CROP_SIZE = 256
# Evaluation resizes the short side to crop / ratio before the centre crop (see TEST.RESIZE_SIZES).
DATA.IN_VAL_CROP_RATIO = 0.875
# ours: resized, a random resized crop (below) | padded, MFF's: short side resized, reflection padding, random window.
DATA.TRAIN_CROP_TYPE = "resized"
# ours: the padded crop's short side (0 is TRAIN_CROP_SIZE) and padding on each side, pixels.
DATA.TRAIN_RESIZE_SHORT_SIDE = 0
DATA.TRAIN_CROP_PADDING = 4
# Random resized crop: range of area, and of aspect ratio. [] is timm's [0.08, 1] and [3/4, 4/3].
DATA.TRAIN_JITTER_SCALES_RELATIVE = []
DATA.TRAIN_JITTER_ASPECT_RELATIVE = []
# ours: a random crop that does not fit is clamped to the image (MAE's linear probe), not drawn again up to ten times.
DATA.TRAIN_CROP_CLAMP = False
# ours: how evaluation resizes, bicubic | bilinear.
DATA.TEST_INTERPOLATION = "bicubic"
# Flip half of the training images.
DATA.RANDOM_FLIP = True
# ours: share of each class's training labels used, for fine-tuning with few labels.
DATA.LABEL_FRACTION = 1.0
# ours: a run stops when more than this share of all its training files was found unreadable since it was (re)started;
# five of them, or half of fewer than ten, never stop it, unless this is 0.
DATA.MAX_BAD_SHARE = 0.01
# Video: in each line of train.csv, val.csv and test.csv, what stands between path and label, and before each path.
# On the command line '\t' is a tab.
DATA.PATH_LABEL_SEPARATOR = " "
DATA.PATH_PREFIX = ""
# Frames per clip, and how many frames they lie apart in a video of TARGET_FPS frames per second.
DATA.NUM_FRAMES = 8
DATA.SAMPLING_RATE = 8
DATA.TARGET_FPS = 30
# What reads video files: pyav | decord, where it is exact | torchvision, which no longer can: pyav reads in its place.
DATA.DECODING_BACKEND = "torchvision"
# Training frames are reduced to this short side, pixels, while they are decoded; 0 is not.
DATA.DECODING_SHORT_SIZE = 256
# Range of the short side, pixels, before a random crop where none is relative (above); the first in tests of one crop.
DATA.TRAIN_JITTER_SCALES = [256, 320]
# Clips taken of a video in each training step, decoded once.
DATA.TRAIN_CROP_NUM_TEMPORAL = 1
# Test clips are spread from the beginning to the end of a video; one alone lies in the middle.
DATA.USE_OFFSET_SAMPLING = False
# What a test makes of the class probabilities of a video's views, sum | max.
DATA.ENSEMBLE_METHOD = "sum"

DATA_LOADER = CN()
# Loader processes per rank.
DATA_LOADER.NUM_WORKERS = 8
DATA_LOADER.PIN_MEMORY = True
# ours: an epoch leaves out what does not fill a last batch, other files each time. False: it comes to all of them, in
# batches of as even a size as can be, none above TRAIN.BATCH_SIZE.
DATA_LOADER.DROP_LAST = True

AUG = CN()
# Switches on colour jitter, RandAugment and erasing; crop and flip stay on without it.
AUG.ENABLE = False
# Views of each file in a batch, decoded once (repeated augmentation, Hoffer et al. 2020).
AUG.NUM_SAMPLE = 1
# ours: each file comes this often in its batch, and an epoch of the usual length sees the fewer files (DeiT: 3).
AUG.REPEATED_SAMPLER = 1
# Strength of brightness, contrast and saturation jitter; None is off. RandAugment replaces it.
AUG.COLOR_JITTER = 0.4
# ours: it does not replace it, but follows it (mmpretrain's MaskFeat).
AUG.COLOR_JITTER_ON_TOP = False
# Augmentation policy in timm's notation; ra_M_N (ours) is torchvision's RandAugment, magnitude M of N; "" is off.
AUG.AA_TYPE = "rand-m9-mstd0.5-inc1"
AUG.INTERPOLATION = "bicubic"
# Random erasing: probability, fill (pixel | rand | const), rectangles; RE_SPLIT spares the first view.
AUG.RE_PROB = 0.25
AUG.RE_MODE = "pixel"
AUG.RE_COUNT = 1
AUG.RE_SPLIT = False
# PySlowFast's switch; masks are always made in the loader here.
AUG.GEN_MASK_LOADER = False
# ours: how hidden tokens are drawn, block (images) | cube (clips) | random; "" is the method's own.
AUG.MASK_TYPE = ""
# Share of the tokens that are hidden.
AUG.MASK_RATIO = 0.0
# Largest block, or face of a cube (ours), in tokens of where it is drawn; None is no bound.
AUG.MAX_MASK_PATCHES_PER_BLOCK = None
# ours: MaskFeat's blocks go on until that share is hidden exactly (mmpretrain); else ten vain attempts end a mask.
AUG.MASK_EXACT = False
# Video: what is hidden is hidden all the time (tubes), or whole frames are.
AUG.MASK_TUBE = False
AUG.MASK_FRAMES = False
# The window (t, h, w) that cubes and their tubes (h, w) and frames (t) are drawn in; it divides the token grid.
AUG.MASK_WINDOW_SIZE = [8, 7, 7]

MIXUP = CN()
MIXUP.ENABLE = False
# Beta parameters of Mixup and CutMix; 0 is off.
MIXUP.ALPHA = 0.8
MIXUP.CUTMIX_ALPHA = 1.0
# Probability of mixing a batch, and of CutMix where both are on.
MIXUP.PROB = 1.0
MIXUP.SWITCH_PROB = 0.5
# ours: which two images are mixed, reverse (the first with the last, …) | next (each with the one before it) | random
# (each with any of the batch, none twice).
MIXUP.PARTNER = "reverse"
# Share of a label's probability that the classes get: all of them, or (ours) the others alone.
MIXUP.LABEL_SMOOTH_VALUE = 0.1
MIXUP.LABEL_SMOOTH_OVER = "all"
# ours: smooth labels without MIXUP.ENABLE, too.
MIXUP.LABEL_SMOOTH_ALWAYS = False
