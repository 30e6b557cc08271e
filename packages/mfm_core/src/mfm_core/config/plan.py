"""What follows from the configuration: batch sizes, scaled learning rates, steps. Never written back into it."""

from __future__ import annotations

from dataclasses import dataclass

from fvcore.common.config import CfgNode

from mfm_core.errors import UserError
from mfm_core.optim.schedule import LRSchedule

IMAGENET_TRAIN_IMAGES = 1_281_167
UNTRAINED_TASKS = ("knn",)
"""Tasks that only look at what others have trained."""


@dataclass(frozen=True)
class RunPlan:
    """Derived values of one run.

    files: training files. batch_size: files per optimizer step, over all processes. views: training samples made of
    each file. accum_steps: micro-batches that a process cuts its share into. trains: whether there is training.
    """

    task: str
    modality: str
    schedule: LRSchedule
    files: int
    batch_size: int
    world_size: int
    accum_steps: int
    views: int
    trains: bool = True

    @property
    def epochs(self) -> int:
        """Epochs of the whole run."""
        return self.schedule.max_epoch

    @property
    def batch_per_rank(self) -> int:
        """Files that one process reads for one optimizer step."""
        return self.batch_size // self.world_size

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps; the incomplete last batch is dropped."""
        return self.files // self.batch_size

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.steps_per_epoch * self.epochs

    def lr(self, step: int) -> float:
        """The learning rate of optimizer step `step`, counted from 0."""
        epoch, iteration = divmod(step, self.steps_per_epoch)
        return self.schedule(epoch + iteration / self.steps_per_epoch)


def task_of(cfg: CfgNode) -> str:
    """pretrain, finetune, probe or knn."""
    if cfg.TASK:
        return {"ssl": "pretrain", "ssl_eval": "finetune"}.get(cfg.TASK, cfg.TASK)
    return "pretrain" if cfg.MODEL.MODEL_NAME == "MaskMViT" else "finetune"


def trains(cfg: CfgNode) -> bool:
    """Whether the run trains: TRAIN.ENABLE, and a task that has something to train."""
    return cfg.TRAIN.ENABLE and task_of(cfg) not in UNTRAINED_TASKS


def method_of(cfg: CfgNode) -> str:
    """The pre-training method that the MASK keys describe: maskfeat, mae, mff or mfm."""
    return cfg.MASK.METHOD or ("mae" if cfg.MASK.MAE_ON else "maskfeat")


def target_of(cfg: CfgNode) -> str:
    """What pre-training predicts: hog, pixel or spectrum."""
    own = "spectrum" if method_of(cfg) == "mfm" else "hog" if cfg.MASK.PRED_HOG else "pixel"
    return cfg.MASK.TARGET or own


def corruption_of(cfg: CfgNode) -> str:
    """What pre-training does to its input: block or random (hidden tokens), frequency, sr, deblur or denoise."""
    own = {"maskfeat": "block", "mae": "random", "mff": "random"}
    return cfg.AUG.MASK_TYPE or own.get(method_of(cfg)) or cfg.MFM.CORRUPTION


def arch_of(cfg: CfgNode) -> str:
    """The kind of backbone: vit or resnet."""
    return "resnet" if cfg.MODEL.ARCH == "resnet" else "vit"


def modality_of(cfg: CfgNode) -> str:
    """image or video, by the data set that the run reads."""
    dataset = cfg.TRAIN.DATASET if cfg.TRAIN.ENABLE else cfg.TEST.DATASET
    return {"imagenet": "image", "kinetics": "video"}[dataset]


def schedule_of(cfg: CfgNode, num_shards: int) -> LRSchedule:
    """The learning-rate schedule, scaled by the number of machines where the configuration asks for it."""
    scale = num_shards if cfg.SOLVER.BASE_LR_SCALE_NUM_SHARDS else 1
    return LRSchedule(
        base=cfg.SOLVER.BASE_LR * scale,
        end=cfg.SOLVER.COSINE_END_LR * scale,
        warmup_start=cfg.SOLVER.WARMUP_START_LR * scale,
        warmup_epochs=cfg.SOLVER.WARMUP_EPOCHS,
        max_epoch=cfg.SOLVER.MAX_EPOCH,
        policy=cfg.SOLVER.LR_POLICY,
        cosine_after_warmup=cfg.SOLVER.COSINE_AFTER_WARMUP,
    )


def plan_run(cfg: CfgNode, files: int, world_size: int, num_shards: int | None = None) -> RunPlan:
    """The plan for `files` training files on `world_size` processes; raises UserError where the sizes do not fit."""
    shards = num_shards or cfg.NUM_SHARDS
    batch_size = cfg.TRAIN.BATCH_SIZE * shards
    pieces = world_size * cfg.TRAIN.ACCUM_STEPS
    if trains(cfg) and batch_size % pieces:
        raise UserError(
            f"TRAIN.BATCH_SIZE {cfg.TRAIN.BATCH_SIZE} (times {shards} machines) cannot be divided over {world_size} "
            f"processes times TRAIN.ACCUM_STEPS {cfg.TRAIN.ACCUM_STEPS}; choose a multiple of {pieces // shards or 1}."
        )
    if trains(cfg) and files < batch_size:
        raise UserError(
            f"TRAIN.BATCH_SIZE is {batch_size} over all machines, but there are only {files} training files; "
            f"set it to {files} or less."
        )
    return RunPlan(
        task=task_of(cfg),
        modality=modality_of(cfg),
        schedule=schedule_of(cfg, shards),
        files=files,
        batch_size=batch_size,
        world_size=world_size,
        accum_steps=cfg.TRAIN.ACCUM_STEPS,
        views=cfg.AUG.NUM_SAMPLE,
        trains=trains(cfg),
    )
