"""What follows from the configuration: batch sizes, scaled learning rates, steps. Never written back into it."""

from __future__ import annotations

from dataclasses import dataclass

from fvcore.common.config import CfgNode

from mfm_core.config.sizes import Sizes
from mfm_core.data.sampler import EpochCut
from mfm_core.errors import UserError
from mfm_core.interfaces import Grid
from mfm_core.optim.schedule import LRSchedule

IMAGENET_TRAIN_IMAGES = 1_281_167
KINETICS_TRAIN_VIDEOS = 240_436
"""Of Kinetics-400, as PySlowFast counts them."""
UNTRAINED_TASKS = ("knn",)
"""Tasks that only look at what others have trained."""


@dataclass(frozen=True)
class RunPlan:
    """Derived values of one run.

    files: training files. batch_size: files per optimizer step, over all processes. machines: what that was made for,
    TRAIN.BATCH_SIZE on each. views: training samples made of each file. accum_steps: micro-batches that a process cuts
    its share into. lr_lag_steps: steps by which the learning rate runs late. trains: whether there is training.
    repetitions: how often a file comes in its batch. drop_last: whether an epoch leaves out its incomplete last batch.
    """

    task: str
    modality: str
    schedule: LRSchedule
    files: int
    batch_size: int
    world_size: int
    accum_steps: int
    views: int
    lr_lag_steps: int = 0
    trains: bool = True
    machines: int = 1
    repetitions: int = 1
    drop_last: bool = True

    @property
    def unit(self) -> str:
        """What speed is counted in."""
        return {"image": "images", "video": "clips"}[self.modality]

    @property
    def epochs(self) -> int:
        """Epochs of the whole run."""
        return self.schedule.max_epoch

    @property
    def batch_per_rank(self) -> int:
        """Files that one process reads for one optimizer step."""
        return self.batch_size // self.world_size

    @property
    def cut(self) -> EpochCut:
        """Of an epoch into batches."""
        return EpochCut(self.files, self.batch_size, self.drop_last)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps."""
        return len(self.cut)

    @property
    def left_out(self) -> int:
        """Files that an epoch does not come to, others each time: those of the incomplete last batch, and with
        repetitions all for which there is no room beside them."""
        return self.files - -(-self.cut.places // self.repetitions)

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.steps_per_epoch * self.epochs

    def lr(self, step: int, lr_scale: float = 1.0) -> float:
        """The learning rate of optimizer step `step`, counted from 0, for parameters with this `lr_scale`."""
        epoch, iteration = divmod(max(0, step - self.lr_lag_steps), self.steps_per_epoch)
        schedule = self.schedule if lr_scale == 1.0 else self.schedule.scaled(lr_scale)
        return schedule(epoch + iteration / self.steps_per_epoch, 1.0 / self.steps_per_epoch)


def task_of(cfg: CfgNode) -> str:
    """pretrain, finetune, probe or knn: what the run does, or what the model is for that TASK visualise looks at."""
    if cfg.TASK == "visualise" and not cfg.MODEL.MODEL_NAME:
        return "pretrain" if cfg.MASK.ENABLE else "finetune"
    if cfg.TASK and cfg.TASK != "visualise":
        return {"ssl": "pretrain", "ssl_eval": "finetune"}.get(cfg.TASK, cfg.TASK)
    return "pretrain" if cfg.MODEL.MODEL_NAME == "MaskMViT" else "finetune"


def device_of(cfg: CfgNode) -> str:
    """auto | cpu | cuda: DEVICE, where NUM_GPUS 0 does not ask for the CPU, as PySlowFast's does."""
    return "cpu" if cfg.DEVICE == "auto" and cfg.NUM_GPUS == 0 else cfg.DEVICE


def trains(cfg: CfgNode) -> bool:
    """Whether the run trains: TRAIN.ENABLE, and a task that has something to train."""
    return cfg.TRAIN.ENABLE and cfg.TASK not in (*UNTRAINED_TASKS, "visualise")


def pictures_of(cfg: CfgNode) -> list[str]:
    """The kinds of pictures that TASK visualise draws, all that the model allows where PICTURE.KIND says so; or []."""
    if cfg.TASK != "visualise":
        return []
    if list(cfg.PICTURE.KIND) != ["all"]:
        return list(dict.fromkeys(cfg.PICTURE.KIND))
    classifies, attends = task_of(cfg) == "finetune", arch_of(cfg) == "vit"
    allowed = {"reconstruction": not classifies, "attention": attends, "gradient": attends and classifies}
    return [kind for kind, can in allowed.items() if can] + ["neighbours"]


def reports_attention(cfg: CfgNode) -> bool:
    """Whether this is a fine-tuning run whose report ends with a picture of attention."""
    return (
        task_of(cfg) == "finetune" and not pictures_of(cfg) and arch_of(cfg) == "vit" and cfg.MONITOR.NUM_PICTURES > 0
    )


def method_of(cfg: CfgNode) -> str:
    """The pre-training method that the MASK keys describe: maskfeat, mae, mff or mfm."""
    return cfg.MASK.METHOD or ("mae" if cfg.MASK.MAE_ON else "maskfeat")


def target_of(cfg: CfgNode) -> str:
    """What pre-training predicts: hog, pixel or spectrum."""
    own = "spectrum" if method_of(cfg) == "mfm" else "hog" if cfg.MASK.PRED_HOG else "pixel"
    return cfg.MASK.TARGET or own


def drawing_of(cfg: CfgNode) -> str:
    """How hidden tokens are drawn, block, cube (clips) or random; or MFM's frequency, sr, deblur or denoise."""
    own = {"maskfeat": "cube" if modality_of(cfg) == "video" else "block", "mae": "random", "mff": "random"}
    return cfg.AUG.MASK_TYPE or own.get(method_of(cfg)) or cfg.MFM.CORRUPTION


def corruption_of(cfg: CfgNode) -> str:
    """What pre-training does to its input: what `drawing_of` says, or hides tubes or frames that are drawn so."""
    drawing = drawing_of(cfg)
    if modality_of(cfg) == "video" and drawing in ("cube", "random"):
        return "tube" if cfg.AUG.MASK_TUBE else "frames" if cfg.AUG.MASK_FRAMES else drawing
    return drawing


def mask_window(cfg: CfgNode, grid: Grid) -> Grid:
    """The shape that masks for a token grid are drawn in, before they are enlarged to it.

    Cubes, and the blocks of their kind that tubes and frames are made of, take AUG.MASK_WINDOW_SIZE; others the grid.
    """
    kind = corruption_of(cfg)
    if kind not in ("cube", "tube", "frames"):
        return grid
    window = grid if drawing_of(cfg) == "random" else tuple(cfg.AUG.MASK_WINDOW_SIZE)
    return {"cube": window, "tube": (1, *window[-2:]), "frames": (window[0], 1, 1)}[kind]


def corrupts(cfg: CfgNode, kind: str) -> bool:
    """Whether the run pre-trains, with this corruption of its input."""
    return task_of(cfg) == "pretrain" and corruption_of(cfg) == kind


MULTISCALE = (
    *("DIM_MUL", "HEAD_MUL", "POOL_Q_STRIDE", "POOL_KV_STRIDE", "POOL_KV_STRIDE_ADAPTIVE", "POOL_KVQ_KERNEL"),
    *("REL_POS_SPATIAL", "REL_POS_TEMPORAL", "RESIDUAL_POOLING"),
)
"""Keys of MVIT, any of which makes a video model a multiscale one."""


def arch_of(cfg: CfgNode) -> str:
    """The kind of backbone: vit or resnet on images, space_time_vit or mvit (multiscale) on clips."""
    if cfg.MODEL.ARCH == "resnet":
        return "resnet"
    if modality_of(cfg) == "image":
        return "vit"
    multiscale = cfg.MODEL.ARCH != "vit" and any(cfg.MVIT[key] for key in MULTISCALE)
    return "mvit" if multiscale else "space_time_vit"


def modality_of(cfg: CfgNode) -> str:
    """image or video, by the data set that the run reads."""
    dataset = cfg.TRAIN.DATASET if cfg.TRAIN.ENABLE else cfg.TEST.DATASET
    return {"imagenet": "image", "kinetics": "video"}[dataset]


def views_of(cfg: CfgNode) -> int:
    """Training samples that are made of each file."""
    return cfg.AUG.NUM_SAMPLE * (cfg.DATA.TRAIN_CROP_NUM_TEMPORAL if modality_of(cfg) == "video" else 1)


def schedule_of(cfg: CfgNode, num_shards: int) -> LRSchedule:
    """The learning-rate schedule, scaled by the machines or by the batch where the configuration asks for it."""
    scale = rest = num_shards if cfg.SOLVER.BASE_LR_SCALE_NUM_SHARDS else 1.0
    if cfg.SOLVER.LR_REFERENCE_BATCH > 0:
        scale = cfg.TRAIN.BATCH_SIZE * num_shards / cfg.SOLVER.LR_REFERENCE_BATCH
        rest = scale if cfg.SOLVER.LR_REFERENCE_SCALES == "all" else 1.0
    return LRSchedule(
        base=cfg.SOLVER.BASE_LR * scale,
        end=cfg.SOLVER.COSINE_END_LR * rest,
        warmup_start=cfg.SOLVER.WARMUP_START_LR * rest,
        warmup_epochs=cfg.SOLVER.WARMUP_EPOCHS,
        max_epoch=cfg.SOLVER.MAX_EPOCH,
        policy=cfg.SOLVER.LR_POLICY,
        cosine_after_warmup=cfg.SOLVER.COSINE_AFTER_WARMUP,
        warmup_to_base=cfg.SOLVER.WARMUP_TO_BASE_LR,
        warmup_inclusive=cfg.SOLVER.WARMUP_INCLUSIVE,
        per_epoch=cfg.SOLVER.LR_PER_EPOCH,
        end_absolute=cfg.SOLVER.COSINE_END_LR_ABSOLUTE,
        warmup_start_absolute=cfg.SOLVER.WARMUP_START_LR_ABSOLUTE,
    )


def _needs_two(cfg: CfgNode, world_size: int) -> str:
    """Why a micro-batch of a process needs two files, for a BatchNorm to have something to normalise; "" where not.

    A ResNet's last feature map is one cell of each image at 32 pixels or less. A probe's norm sees all processes.
    """
    if views_of(cfg) > 1:
        return ""
    if task_of(cfg) == "probe":
        return "PROBE.BATCH_NORM needs two inputs or more in a micro-batch" * (cfg.PROBE.BATCH_NORM and world_size == 1)
    if arch_of(cfg) != "resnet" or cfg.DATA.TRAIN_CROP_SIZE > 32:
        return ""
    return (
        f"A ResNet's last feature map is one cell for DATA.TRAIN_CROP_SIZE {cfg.DATA.TRAIN_CROP_SIZE}, and its "
        "BatchNorm then needs two images or more in a micro-batch"
    )


def plan_run(cfg: CfgNode, files: int, world_size: int, num_shards: int | None = None) -> RunPlan:
    """The plan for `files` training files on `world_size` processes; raises UserError where the sizes do not fit."""
    shards = num_shards or cfg.NUM_SHARDS
    sizes = Sizes(files, cfg.TRAIN.BATCH_SIZE, shards, world_size, cfg.TRAIN.ACCUM_STEPS, cfg.DATA_LOADER.DROP_LAST)
    refusal = sizes.refusal(_needs_two(cfg, world_size)) if trains(cfg) else ""
    if refusal:
        raise UserError(refusal)
    return RunPlan(
        task=task_of(cfg),
        modality=modality_of(cfg),
        schedule=schedule_of(cfg, shards),
        files=files,
        batch_size=sizes.batch * shards,
        world_size=world_size,
        accum_steps=cfg.TRAIN.ACCUM_STEPS,
        views=views_of(cfg),
        lr_lag_steps=cfg.SOLVER.LR_LAG_STEPS,
        trains=trains(cfg),
        machines=shards,
        repetitions=cfg.AUG.REPEATED_SAMPLER,
        drop_last=sizes.drop_last,
    )
