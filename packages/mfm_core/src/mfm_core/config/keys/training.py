"""Keys of the optimizer, the loop, and processes."""

from fvcore.common.config import CfgNode as CN

SOLVER = CN()
# adamw | sgd | lars (ours)
SOLVER.OPTIMIZING_METHOD = "sgd"
SOLVER.BASE_LR = 0.1
# Multiply base, end and warm-up start learning rate by NUM_SHARDS.
SOLVER.BASE_LR_SCALE_NUM_SHARDS = False
# ours: the learning rates are meant for this many files per step and grow with the batch in proportion; 0 is off.
SOLVER.LR_REFERENCE_BATCH = 0
# ours: what LR_REFERENCE_BATCH scales: base (BASE_LR alone, MAE) | all (WARMUP_START_LR and COSINE_END_LR too, MFM).
SOLVER.LR_REFERENCE_SCALES = "base"
# ours: the learning rate changes between epochs only, not at each step.
SOLVER.LR_PER_EPOCH = False
# ours: the learning rate of each step is the one meant for this many steps before it (MFM: 1). Whole optimizer steps,
# whatever TRAIN.ACCUM_STEPS: MFM lags by one micro-batch of them.
SOLVER.LR_LAG_STEPS = 0
# cosine | constant (ours)
SOLVER.LR_POLICY = "cosine"
SOLVER.MAX_EPOCH = 300
SOLVER.COSINE_END_LR = 0.0
# ours: COSINE_END_LR and WARMUP_START_LR hold as they are for every layer; else layer decay lowers them, too.
SOLVER.COSINE_END_LR_ABSOLUTE = False
SOLVER.WARMUP_START_LR_ABSOLUTE = False
# The half-cosine starts at the end of warm-up instead of at epoch 0.
SOLVER.COSINE_AFTER_WARMUP = False
SOLVER.WARMUP_EPOCHS = 0.0
SOLVER.WARMUP_START_LR = 0.01
# ours: warm-up leads to BASE_LR, where a cosine from epoch 0 has already left it (COSINE_AFTER_WARMUP False).
SOLVER.WARMUP_TO_BASE_LR = False
# ours: warm-up gets there at its own last step (MAE-priv, mmpretrain), not at the step after it.
SOLVER.WARMUP_INCLUSIVE = False
SOLVER.BETAS = (0.9, 0.999)
SOLVER.MOMENTUM = 0.9
SOLVER.DAMPENING = 0.0
SOLVER.NESTEROV = True
# ours: LARS adapts the steps of biases and gains, too (mmpretrain); otherwise they take plain momentum SGD (MAE).
SOLVER.LARS_ADAPT_1D = False
SOLVER.WEIGHT_DECAY = 1e-4
# No weight decay on 1-D parameters (norms and biases).
SOLVER.ZERO_WD_1D_PARAM = False
# ours: tables without weight decay, of cls_token, pos_embed and mask_token, where the model has them.
SOLVER.NO_DECAY = []
# Learning rate of block i is multiplied by LAYER_DECAY^(depth - i).
SOLVER.LAYER_DECAY = 1.0
# Clip each gradient value, or the norm of all gradients together; None and 0 are off.
SOLVER.CLIP_GRAD_VAL = None
SOLVER.CLIP_GRAD_L2NORM = None

TRAIN = CN()
TRAIN.ENABLE = True
# imagenet: an image folder. kinetics: lists of videos.
TRAIN.DATASET = "kinetics"
# Files per optimizer step on one machine, over its NUM_GPUS processes.
TRAIN.BATCH_SIZE = 64
# ours: cut each step's batch into this many pieces to save memory; the loss is still the mean over all of it.
TRAIN.ACCUM_STEPS = 1
# Epochs between evaluations and between checkpoints; the last epoch has both.
TRAIN.EVAL_PERIOD = 10
TRAIN.CHECKPOINT_PERIOD = 10
# ours: steps between checkpoints inside an epoch (0 is none), and how many of the newest checkpoints stay (0 is all).
TRAIN.CHECKPOINT_STEPS = 0
TRAIN.CHECKPOINT_KEEP = 0
# ours: consolidated: one file, which the main process writes | sharded: a folder, each process writes its part.
TRAIN.CHECKPOINT_FORMAT = "consolidated"
# ours: write checkpoints while training goes on, from a copy in main memory.
TRAIN.CHECKPOINT_ASYNC = False
# Continue from the newest checkpoint in OUTPUT_DIR. False begins anew; checkpoints and pictures there go to before_N.
TRAIN.AUTO_RESUME = True
# Start from these weights.
TRAIN.CHECKPOINT_FILE_PATH = ""
# Take only the weights and start at epoch 0; otherwise a checkpoint of the same task is continued.
TRAIN.CHECKPOINT_EPOCH_RESET = False
# ours: CHECKPOINT_FILE_PATH must fill at least this share of the backbone's parameters.
TRAIN.CHECKPOINT_MIN_MATCH = 0.5
# Mixed precision where PRECISION is auto and the device has no bfloat16 (fp16).
TRAIN.MIXED_PRECISION = False
# ours: auto | fp32 | bf16 | fp16. auto is bf16 where the device computes in it.
TRAIN.PRECISION = "auto"
# ours: torch.compile the model.
TRAIN.COMPILE = False
# ours: decay of an exponential moving average of the weights, which evaluation then uses; 0 is none.
TRAIN.EMA_DECAY = 0.0
# A loss above this multiple of its running mean never reaches the weights; 0 is off. The mean is over some 50 losses,
# where PySlowFast's is over five: while the loss falls quickly, one factor lets more pass here.
TRAIN.KILL_LOSS_EXPLOSION_FACTOR = 0.0
# ours: what such a step does, stop | skip.
TRAIN.EXPLOSION = "stop"
# ours: what a step with a NaN or infinite loss or gradient does, stop | skip. It never reaches the weights.
TRAIN.NONFINITE = "stop"
# ours: save and leave after this many optimizer steps in all; 0 is never.
TRAIN.STOP_STEP = 0

# ours: distribution over processes.
DIST = CN()
# auto: single for one process, sharded_ddp for several | single | ddp | sharded_ddp (fairscale) | fsdp2
DIST.STRATEGY = "auto"
# ddp: look in each step for parameters that take no part in it; without, such a step is refused.
DIST.FIND_UNUSED = False
# fsdp2: what blocks are put together and compute in, auto (what TRAIN.PRECISION says) | fp32. Pieces are kept in fp32.
DIST.PARAM_PRECISION = "auto"
# fsdp2: what gradients are summed in, fp32 | auto (what TRAIN.PRECISION says).
DIST.REDUCE_PRECISION = "fp32"
# fsdp2: forget a block's parameters after its forward pass and gather them again for the backward pass.
DIST.RESHARD_AFTER_FORWARD = True
# fsdp2: parameters, gradients and moments lie in main memory, where the optimizer steps them.
DIST.CPU_OFFLOAD = False
# Seconds after which a collective operation that does not complete ends the run.
DIST.TIMEOUT = 1800.0
