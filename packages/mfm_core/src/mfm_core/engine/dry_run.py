"""What a run would do, without data or device: the way of one batch, parameters, FLOPs, memory, learning rate, steps.

The model is built and called on torch's meta device, where tensors have shapes and no content.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mfm_core.config.plan import RunPlan
from mfm_core.engine.memory import Memory, memory_from_cfg
from mfm_core.interfaces import PretrainOutput


@dataclass
class RunDescription:
    """stages: (what, shape, remark) along the way of one training batch on one process.

    macs: multiply-adds of the forward pass for one input. memory: of training, None where nothing is trained.
    """

    parameters: int
    trainable: int
    plan: RunPlan
    memory: Memory | None = None
    stages: list[tuple[str, tuple, str]] = field(default_factory=list)
    macs: int = 0

    def lines(self) -> list[str]:
        """The table that `--dry-run` prints."""
        plan, schedule = self.plan, self.plan.schedule
        rows = [f"  {what:<34}{' x '.join(map(str, shape)):<28}{remark}" for what, shape, remark in self.stages]
        if self.memory is None:
            return [
                "one input:",
                *rows,
                f"parameters      {self.parameters / 1e6:.2f} M ({self.parameters:,}), none trained",
                f"compute         {self.macs / 1e9:.2f} GFLOPs per input (multiply-adds)",
            ]
        sizes = f"{plan.cut.smallest:,}{' or one more' * plan.cut.uneven}"
        passes = 1 + 2 * self.trainable / self.parameters  # the backward pass takes two more, of what is trained
        return [
            f"one micro-batch on one of {plan.world_size} process(es):",
            *rows,
            f"parameters      {self.parameters / 1e6:.2f} M ({self.parameters:,}), {self.trainable:,} trained",
            f"compute         {self.macs / 1e9:.2f} GFLOPs forward per input (multiply-adds), "
            f"{passes * self.macs * plan.batch_size * plan.views / 1e12:.2f} T per training step",
            f"memory          {self.memory.line()}",
            f"learning rate   {schedule.warmup_start:g} -> {schedule.base:g} in {schedule.warmup_epochs:g} epochs, "
            f"{schedule.policy} to {schedule.end:g}",
            f"batch           {plan.batch_size} files x {plan.views} view(s) per step = {plan.world_size} process(es) "
            f"x {plan.accum_steps} micro-batch(es) x {plan.batch_per_rank // plan.accum_steps}",
            f"steps           {plan.total_steps:,} = {plan.epochs} epochs x {plan.steps_per_epoch:,} "
            f"({plan.files:,} training files{f', each epoch without {plan.left_out:,} of them' * bool(plan.left_out)}"
            f"{f', in batches of {sizes}' * (plan.cut.smallest < plan.batch_size)})",
        ]


def describe_run(
    model: nn.Module, example: tuple[Tensor, ...], cfg: CfgNode, plan: RunPlan, precision: str, device_type: str
) -> RunDescription:
    """Describes training `model`, which is in one piece, on devices of this type, cuda or cpu.

    example: meta tensors for one input of the forward pass (batch size 1).
    """
    parameters = list(model.parameters())
    description = RunDescription(
        parameters=sum(p.numel() for p in parameters),
        trainable=sum(p.numel() for p in parameters if p.requires_grad),
        plan=plan,
        memory=memory_from_cfg(model, example, cfg, plan, precision, device_type) if plan.trains else None,
    )
    shadow = _on_meta(model)
    micro = plan.batch_per_rank * plan.views // plan.accum_steps if plan.trains else 1
    description.macs = forward_macs(shadow, example)
    output, description.stages = _trace(shadow, tuple(t.expand(micro, *t.shape[1:]) for t in example))
    description.stages += _output_rows(output)
    return description


def forward_macs(model: nn.Module, example: tuple[Tensor, ...]) -> int:
    """Multiply-adds of the matrix products and convolutions in one forward pass; `example`: its input, on meta."""
    with FlopCounterMode(display=False) as flops:
        _on_meta(model).eval()(*example)  # BatchNorm cannot train on one image whose last feature map is one cell
    return flops.get_total_flops() // 2


def _on_meta(model: nn.Module) -> nn.Module:
    """A copy of the model's structure without its content."""
    memo = {id(t): _meta_like(t) for t in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, memo).train()


def _meta_like(tensor: Tensor) -> Tensor:
    empty = torch.empty_like(tensor, device="meta")
    return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty


def _trace(model: nn.Module, batch: tuple[Tensor, ...]) -> tuple[object, list[tuple[str, tuple, str]]]:
    """Runs the model and notes the shape that leaves each stage."""
    rows: list[tuple[str, tuple, str]] = [("input", tuple(batch[0].shape), "float32, normalised")]
    for drawn in batch[1:]:
        rows.append(("mask", tuple(drawn.shape), "bool, True = hidden" if drawn.dtype == torch.bool else "float32"))
    stages = {**model.backbone.stages(), "head": model.head}
    handles = [
        module.register_forward_hook(lambda _, __, out, name=name: rows.append((name, _shape(out), "")))
        for name, module in stages.items()
    ]
    output = model(*batch)
    for handle in handles:
        handle.remove()
    return output, rows


def _shape(out: object) -> tuple:
    return tuple(out[-1].shape) if isinstance(out, (list, tuple)) else tuple(out.shape)


def _output_rows(output: object) -> list[tuple[str, tuple, str]]:
    if not isinstance(output, PretrainOutput):
        return []
    return [
        ("target", tuple(output.target.shape), "float32, no gradient"),
        ("loss", tuple(output.loss.shape), "mean over what is hidden"),
    ]
