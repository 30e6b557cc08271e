"""Keys of pre-training: what is hidden, what is predicted."""

from fvcore.common.config import CfgNode as CN

MASK = CN()
MASK.ENABLE = False
# ours: maskfeat | mae | mff | mfm; "" lets MASK.MAE_ON and MASK.PRED_HOG decide, as in PySlowFast.
MASK.METHOD = ""
# ours: what is predicted, hog | pixel | spectrum; "" is the method's own.
MASK.TARGET = ""
# Predict HOG (MaskFeat).
MASK.PRED_HOG = False
# Blocks whose outputs are predicted from, one head each; their losses add up.
MASK.PRETRAIN_DEPTH = [15]
# separate: norm and linear layer. separate_xformer: a transformer decoder (MAE).
MASK.HEAD_TYPE = "separate"
MASK.MAE_ON = False
MASK.MAE_RND_MASK = False
# ours: what is rounded down where every image hides the same number of tokens, visible (MAE) | hidden (MAE-priv).
MASK.COUNT = "visible"
MASK.DECODER_DEPTH = 0
MASK.DECODER_EMBED_DIM = 512
# ours: 0 is one head for each 64 channels.
MASK.DECODER_NUM_HEADS = 0
# ours: whether the decoder's blocks see the class token (MAE) or not (MAE-priv).
MASK.DECODER_CLS_TOKEN = True
# ours: how weights start. Masked autoencoders: mae | mae_priv | pyslowfast; "" is mae on images, pyslowfast on clips.
# MaskFeat: pyslowfast | mmpretrain (other biases); "" is pyslowfast.
MASK.INIT = ""
# Video: learned positions of the decoder in two tables, over space and over time.
MASK.DECODER_SEP_POS_EMBED = False
# Video: predict the pixels of the first frame of each patch alone.
MASK.TIME_STRIDE_LOSS = True
# Normalise the pixels of each patch by its own mean and variance.
MASK.NORM_PRED_PIXEL = True
# ours: order of a patch's pixels, hwc (MAE) | chw (MAE-priv), and its variance, unbiased (MAE) | biased (MAE-priv).
MASK.PIXEL_ORDER = "hwc"
MASK.PIXEL_VARIANCE = "unbiased"

# ours: MFF, MAE with fused layers.
MFF = CN()
# Blocks whose outputs are fused into the last one's, which joins by itself.
MFF.LAYERS = [0, 2, 4, 6, 8]

# ours: MFM, masked frequency modelling, and its siblings.
MFM = CN()
# What is done to the input: frequency | sr | deblur | denoise.
MFM.CORRUPTION = "frequency"
# frequency: low frequencies are nearer to the centre than RADIUS, or at least RADIUS_OUTER away from it.
MFM.RADIUS = 16.0
MFM.RADIUS_OUTER = 999.0
# Probability that the encoder sees the low frequencies of an image, and not the high ones.
MFM.LOW_PASS_RATIO = 0.5
# The centre: dc, the frequency zero. half: half the image's size, also where that is odd (CoinCheung/MFM).
MFM.CENTRE = "dc"
# clamped: pixels are filtered and clamped to [0, 1]. magnitude: of the filtered normalised image (CoinCheung/MFM).
MFM.FILTER = "clamped"
# sr: the image is made this many times smaller, and enlarged again.
MFM.SR_FACTOR = 8
# deblur: kernel sizes, drawn evenly; kinds (iso | aniso | generalized_iso | generalized_aniso | plateau_iso |
# plateau_aniso | sinc) and their probabilities; ranges of what shapes them (pixels, radians, exponents).
MFM.BLUR_KERNEL_SIZE = [7, 9, 11, 13, 15, 17, 19, 21]
MFM.BLUR_KERNEL_LIST = [
    *("iso", "aniso", "generalized_iso", "generalized_aniso", "plateau_iso", "plateau_aniso", "sinc"),
]
MFM.BLUR_KERNEL_PROB = [0.405, 0.225, 0.108, 0.027, 0.108, 0.027, 0.1]
MFM.BLUR_SIGMA_X = [0.2, 3.0]
MFM.BLUR_SIGMA_Y = [0.2, 3.0]
MFM.BLUR_ROTATE_ANGLE = [-3.1416, 3.1416]
MFM.BLUR_BETA_GAUSSIAN = [0.5, 4.0]
MFM.BLUR_BETA_PLATEAU = [1.0, 2.0]
# denoise: kinds (gaussian | poisson) and their probabilities; range of the Gaussian's standard deviation (8-bit
# levels) and of the factor on Poisson noise; probability of noise without colour.
MFM.NOISE_TYPE = ["gaussian", "poisson"]
MFM.NOISE_PROB = [0.5, 0.5]
MFM.NOISE_GAUSSIAN_SIGMA = [1.0, 30.0]
MFM.NOISE_GAUSSIAN_GREY_PROB = 0.4
MFM.NOISE_POISSON_SCALE = [0.05, 3.0]
MFM.NOISE_POISSON_GREY_PROB = 0.4
# MASK.TARGET spectrum: predict the grey image, one channel (CoinCheung/MFM).
MFM.GREY = False
# Its loss |difference|^LOSS_GAMMA, LOSS_EPS under the root, is averaged over: masked, the batch's hidden frequencies.
# normal: all. sample: each image's hidden ones, then the images. "": masked where frequencies are hidden, else normal.
MFM.LOSS_REDUCTION = ""
MFM.LOSS_GAMMA = 1.0
MFM.LOSS_EPS = 1e-12
# Spectra of PATCH_FACTOR x PATCH_FACTOR pieces of the image; averaged over the batch first.
MFM.PATCH_FACTOR = 1
MFM.AVE_SPECTRUM = False
# Weigh each frequency by |difference|^MATRIX_GAMMA (by the log of it), over its maximum in the image (in the batch).
MFM.WITH_MATRIX = False
MFM.MATRIX_GAMMA = 1.0
MFM.LOG_MATRIX = False
MFM.BATCH_MATRIX = False

# ours: the HOG target (PySlowFast's constants are the defaults).
HOG = CN()
HOG.BINS = 9
# Side of a cell, pixels; it divides the patch.
HOG.CELL = 8
# Side of the Gaussian window on the magnitudes, pixels; 0 is none.
HOG.GAUSSIAN_WINDOW = 0
