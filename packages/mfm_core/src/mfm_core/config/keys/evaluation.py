"""Keys of tests, k-NN, probes, what a run shows of its health, pictures."""

from fvcore.common.config import CfgNode as CN

TEST = CN()
# Evaluate on the validation images where TRAIN.ENABLE is off; TASK knn does nothing else.
TEST.ENABLE = True
TEST.DATASET = "kinetics"
TEST.BATCH_SIZE = 8
# Weights to test where nothing is trained; "" is the newest checkpoint in OUTPUT_DIR. In a training run's OUTPUT_DIR
# the test has a folder of its own, test (TASK knn: knn).
TEST.CHECKPOINT_FILE_PATH = ""
# ours: short sides, in pixels, that evaluation resizes images to before the crop; [] follows IN_VAL_CROP_RATIO. The
# first counts; with several, fine-tuning lists accuracy at each after the last epoch and when testing.
TEST.RESIZE_SIZES = []
# Views of a video.
TEST.NUM_ENSEMBLE_VIEWS = 10
TEST.NUM_SPATIAL_CROPS = 3
TEST.NUM_TEMPORAL_CLIPS = []

# ours: what a pre-training run shows of its health, and a fine-tuning run of its data.
MONITOR = CN()
# Epochs between looks at the fixed validation images (loss with fixed masks, rank and spread of the features).
MONITOR.PERIOD = 1
MONITOR.NUM_IMAGES = 256
# Epochs between pictures, and how many images they show; 0 is none. The last epoch has one, in fine-tuning it alone.
MONITOR.PICTURE_PERIOD = 10
MONITOR.NUM_PICTURES = 6

# ours: k-nearest-neighbour accuracy of frozen features (Wu et al. 2018).
KNN = CN()
# Epochs between evaluations during pre-training; 0 is none. The last epoch has one.
KNN.PERIOD = 0
KNN.K = [20]
KNN.TEMPERATURE = 0.07
# K is a list, one accuracy each. Training images used as neighbours, drawn evenly over the classes; 0 is all.
KNN.NUM_TRAIN = 0
# TASK knn reads: mean (of the patch tokens, each normalised) | mean_raw (as they are) | cls (the class token after the
# checkpoint's final norm) | cls_raw (as it is).
KNN.FEATURES = "mean"
# TASK knn reloads OUTPUT_DIR's saved features where they are of the same weights, model and files.
KNN.REUSE_FEATURES = True

# ours: linear probing, TASK probe. MVIT.USE_MEAN_POOLING chooses what it reads, mean over the tokens or class token.
PROBE = CN()
# Learning rates that are probed in one pass, a linear layer each; [] is SOLVER.BASE_LR alone. Warm-up start and end of
# the schedule scale with them, as SOLVER.WARMUP_START_LR and COSINE_END_LR do with SOLVER.BASE_LR.
PROBE.LRS = []
# A ViT's read-out has a LayerNorm: the pre-trained one for the class token, otherwise one without effect of its own.
PROBE.LAYER_NORM = True
# BatchNorm without affine between the frozen features and the linear layer, and its epsilon.
PROBE.BATCH_NORM = True
PROBE.BATCH_NORM_EPS = 1e-6

# ours: what TASK visualise draws, with the weights of TEST.CHECKPOINT_FILE_PATH or OUTPUT_DIR's newest checkpoint.
PICTURE = CN()
# reconstruction (pre-training), attention (ViT), gradient (ViT classifier), neighbours; all is what the model allows.
PICTURE.KIND = ["all"]
# A file, or a folder whose files are shown, at any depth (a folder of frames is one video); "": of the data's val.
PICTURE.INPUT = ""
# Images shown, chosen evenly.
PICTURE.NUM_IMAGES = 8
# Attention rollout: how heads are joined, mean | max | min. Fine-tuning's report shows it, too.
PICTURE.HEAD_FUSION = "mean"
# Share of the smallest attention of each block that is dropped, and the block that is shown; -1 is all of them.
PICTURE.DISCARD_RATIO = 0.0
PICTURE.LAYER = -1
# Gradient rollout: the class that it explains; -1 is the likeliest of each image.
PICTURE.CLASS = -1
# Neighbours of each image; pre-training's report shows them where KNN.PERIOD is on.
PICTURE.NUM_NEIGHBOURS = 6
# Seeds the masks.
PICTURE.SEED = 0
