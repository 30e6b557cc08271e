"""The memory that training takes on one device: what the strategy stores there, and what the forward pass leaves."""

from __future__ import annotations

from dataclasses import dataclass

from fvcore.common.config import CfgNode
from torch import Tensor, nn

from mfm_core.config.plan import RunPlan
from mfm_core.engine.activations import Activations, count_activations
from mfm_core.optim.build import groups_from_cfg
from mfm_core.parallel.memory import STORED, Options, Sizes, Stored
from mfm_core.parallel.strategies import strategy_name

GB = 1024**3


@dataclass(frozen=True)
class Memory:
    """Of the process that holds most. inputs: of one micro-batch. copies: bytes of weights that autocast rounds."""

    strategy: str
    precision: str
    stored: Stored
    activations: Activations
    copies: int
    inputs: int
    checkpointed: bool

    @property
    def device(self) -> int:
        """Bytes on the device, without what is forgotten at once: results that nobody keeps, buffers of exchange."""
        return self.stored.device + self.copies + self.activations.of(self.inputs, self.checkpointed)

    def line(self) -> str:
        """For the dry run."""
        stored = self.stored
        parts = {
            "parameters": stored.parameters,
            "gradients": stored.gradients,
            "optimizer": stored.optimizer,
            "average": stored.average,
            "put together": stored.gathered,
            "rounded weights": self.copies,
            "activations": self.activations.of(self.inputs, self.checkpointed),
        }
        shown = ", ".join(f"{size / GB:.2f} {name}" for name, size in parts.items() if size)
        host = f", of it {stored.host / GB:.2f} in main memory" if stored.in_host else ""
        total = self.device + stored.host
        return f"about {total / GB:.2f} GB per process{host} ({self.strategy}, {self.precision}): {shown}"


def memory_from_cfg(
    model: nn.Module, example: tuple[Tensor, ...], cfg: CfgNode, plan: RunPlan, precision: str, device_type: str
) -> Memory:
    """Of a run whose model is in one piece, on any device. example: meta tensors for one input of its forward pass."""
    strategy = strategy_name(cfg.DIST, plan.world_size)
    options = options_from_cfg(cfg, precision)
    activations = count_activations(model, example, precision, device_type)
    return Memory(
        strategy=strategy,
        precision=precision,
        stored=STORED[strategy](Sizes.of(model, groups_from_cfg(model, cfg)), plan.world_size, options),
        activations=activations,
        copies=copies(activations, strategy, options),
        inputs=plan.batch_per_rank * plan.views // plan.accum_steps,
        checkpointed=cfg.MODEL.ACT_CHECKPOINT,
    )


def options_from_cfg(cfg: CfgNode, precision: str) -> Options:
    """What of the configuration says how much is stored."""
    return Options(
        optimizer=cfg.SOLVER.OPTIMIZING_METHOD,
        momentum=cfg.SOLVER.OPTIMIZING_METHOD != "sgd" or cfg.SOLVER.MOMENTUM > 0,
        average=cfg.TRAIN.EMA_DECAY > 0,
        accumulates=cfg.TRAIN.ACCUM_STEPS > 1,
        low_precision=cfg.DIST.PARAM_PRECISION == "auto" and precision != "fp32",
        reshard=cfg.DIST.RESHARD_AFTER_FORWARD,
        offload=cfg.DIST.CPU_OFFLOAD,
    )


def copies(activations: Activations, strategy: str, options: Options) -> int:
    """Bytes of weights that autocast rounds and keeps; blocks that fsdp2 puts together in 16 bits need none."""
    rounded = strategy == "fsdp2" and options.low_precision
    return activations.fixed_outside if rounded else activations.fixed
