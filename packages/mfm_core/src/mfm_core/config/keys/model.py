"""Keys of backbones and classifiers."""

from fvcore.common.config import CfgNode as CN

MODEL = CN()
# MaskMViT pre-trains, MViT classifies, "" leaves it to TASK (ours).
MODEL.MODEL_NAME = "SlowFast"
# maskmvit | mvit | vit (ours): a ViT where MVIT.PATCH_2D is on. resnet (ours): see RESNET.
MODEL.ARCH = "slowfast"
MODEL.NUM_CLASSES = 400
# Dropout before the classifier.
MODEL.DROPOUT_RATE = 0.5
# Pre-training: multi_mse. Fine-tuning: cross_entropy | soft_cross_entropy | bce (ours: a sigmoid for each class).
MODEL.LOSS_FUNC = "cross_entropy"
# Recompute each block's activations in the backward pass instead of keeping them.
MODEL.ACT_CHECKPOINT = False

MVIT = CN()
# ours: Ti | S | B | L | H sets EMBED_DIM, DEPTH and NUM_HEADS together; "" reads those three.
MVIT.SIZE = ""
MVIT.EMBED_DIM = 96
MVIT.DEPTH = 16
MVIT.NUM_HEADS = 1
MVIT.MLP_RATIO = 4.0
MVIT.QKV_BIAS = True
# ours: a bias on the keys too; MAE-priv and MFM have none.
MVIT.KEY_BIAS = True
MVIT.NORM = "layernorm"
# Patch embedding on images (2-D) rather than clips; its kernel, stride and padding.
MVIT.PATCH_2D = False
MVIT.PATCH_KERNEL = [3, 7, 7]
MVIT.PATCH_STRIDE = [2, 4, 4]
MVIT.PATCH_PADDING = [2, 4, 4]
MVIT.CLS_EMBED_ON = True
# Learned absolute positions, or the fixed sin-cos table. SEP_POS_EMBED: on clips, a table over space and one over time.
MVIT.USE_ABS_POS = True
MVIT.USE_FIXED_SINCOS_POS = False
MVIT.SEP_POS_EMBED = False
# ours: what the first half of a sin-cos table's channels holds, in encoder and decoder: column (MAE) | row (MAE-priv).
MVIT.SINCOS_FIRST = "column"
# Classifier: mean over the tokens, then norm; otherwise norm, then the class token.
MVIT.USE_MEAN_POOLING = False
# ours: without mean pooling, start the classifier's norm afresh instead of taking the pre-trained encoder's (MAE-priv).
MVIT.FRESH_NORM = False
# Stochastic depth of the last block; it grows linearly from 0.
MVIT.DROPPATH_RATE = 0.1
# Initial value of learned per-channel scales on the residual branches; 0 is no such scales.
MVIT.LAYER_SCALE_INIT_VALUE = 0.0
# Classifier weights start multiplied by this.
MVIT.HEAD_INIT_SCALE = 1.0
# ours: their standard deviation before that (MAE: 2e-5), and the biases' start, the norm's too (0 but in PySlowFast).
# A deviation of 0: weights and biases as torch starts linear layers (torchvision's ResNets).
MVIT.HEAD_INIT_STD = 0.02
MVIT.HEAD_INIT_BIAS = 0.02
# ours: the start of the norm's bias where it is another (mmpretrain: 0); None is HEAD_INIT_BIAS.
MVIT.HEAD_INIT_NORM_BIAS = None
# No weight decay on class token and positions.
MVIT.ZERO_DECAY_POS_CLS = True
# Multiscale stages: pooling attention, its strides and kernels, relative positions.
MVIT.MODE = "conv"
# [block, factor]: what multiplies width and heads, the width in the MLP of the block before it.
MVIT.DIM_MUL = []
MVIT.HEAD_MUL = []
# The width changes in the attention of the block that DIM_MUL names, not in the MLP before it.
MVIT.DIM_MUL_IN_ATT = False
# Kernel of all poolings; None is one more than each stride.
MVIT.POOL_KVQ_KERNEL = None
# Strides of keys and values: of the first block, divided by each query stride on the way | [block, t, h, w] each.
MVIT.POOL_KV_STRIDE_ADAPTIVE = None
MVIT.POOL_KV_STRIDE = []
# Strides of queries, [block, t, h, w] each; blocks that are not named pool no queries.
MVIT.POOL_Q_STRIDE = []
# Dropout behind positions, attention and MLP of the multiscale model.
MVIT.DROPOUT_RATE = 0.0
MVIT.REL_POS_SPATIAL = False
MVIT.REL_POS_TEMPORAL = False
MVIT.RESIDUAL_POOLING = False

# The ResNet (bottleneck blocks, stride on the 3x3 convolution).
RESNET = CN()
# 50 | 101 | 152
RESNET.DEPTH = 50
# ours: the last BatchNorm of each block starts at zero, so that blocks start as the identity.
RESNET.ZERO_INIT = True

BN = CN()
# batchnorm: each process normalises its own inputs | sync_batchnorm: those of all, as one process with the whole batch.
BN.NORM_TYPE = "batchnorm"
# PySlowFast's precise statistics: not computed here, a ResNet is evaluated with its running ones.
BN.USE_PRECISE_STATS = False
BN.NUM_BATCHES_PRECISE = 200
