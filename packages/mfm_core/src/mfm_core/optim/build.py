"""Builds the optimizer that the configuration asks for, and sets its learning rate at each step."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial

import torch
from fvcore.common.config import CfgNode
from torch import nn

from mfm_core.optim.groups import parameter_groups
from mfm_core.optim.lars import LARS
from mfm_core.registry import Registry

OPTIMIZERS = Registry("optimizer", key="SOLVER.OPTIMIZING_METHOD")


@OPTIMIZERS.register("adamw")
def adamw(groups: list[dict], cfg: CfgNode) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019), fused: one kernel, which also skips a step that has a NaN."""
    return torch.optim.AdamW(groups, lr=cfg.SOLVER.BASE_LR, betas=tuple(cfg.SOLVER.BETAS), eps=1e-8, fused=True)


@OPTIMIZERS.register("sgd")
def sgd(groups: list[dict], cfg: CfgNode) -> torch.optim.Optimizer:
    """SGD with momentum, fused.

    The momentum starts as zeros: torch would make it on the first step, and leave it undefined where the step guard
    holds that step back. (The same numbers as torch's without SOLVER.DAMPENING.)
    """
    optimizer = torch.optim.SGD(
        groups,
        lr=cfg.SOLVER.BASE_LR,
        momentum=cfg.SOLVER.MOMENTUM,
        dampening=cfg.SOLVER.DAMPENING,
        nesterov=cfg.SOLVER.NESTEROV and cfg.SOLVER.MOMENTUM > 0,
        fused=True,
    )
    if cfg.SOLVER.MOMENTUM > 0:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter, requires_grad=False)
    return optimizer


@OPTIMIZERS.register("lars")
def lars(groups: list[dict], cfg: CfgNode) -> torch.optim.Optimizer:
    """LARS (You et al. 2017), for linear probes with very large batches."""
    return LARS(groups, lr=cfg.SOLVER.BASE_LR, momentum=cfg.SOLVER.MOMENTUM, adapt_1d=cfg.SOLVER.LARS_ADAPT_1D)


Make = Callable[[list[dict]], torch.optim.Optimizer]
"""Makes an optimizer of parameter groups."""


def build_optimizer(
    model: nn.Module, cfg: CfgNode, share: Callable[[list[dict], Make], torch.optim.Optimizer] | None = None
) -> torch.optim.Optimizer:
    """The optimizer over the model's groups, or what `share` (`Strategy.optimizer`) makes of these."""
    groups = groups_from_cfg(model, cfg)
    make = partial(OPTIMIZERS.get(cfg.SOLVER.OPTIMIZING_METHOD), cfg=cfg)
    return share(groups, make) if share else make(groups)


def groups_from_cfg(model: nn.Module, cfg: CfgNode) -> list[dict]:
    """The model's parameter groups. It offers `layer_of`, `num_layers`, `lr_scale` and `no_weight_decay`."""
    return parameter_groups(
        model,
        cfg.SOLVER.WEIGHT_DECAY,
        no_decay_names=_spared(model, cfg.MVIT.ZERO_DECAY_POS_CLS, cfg.SOLVER.NO_DECAY),
        no_decay_1d=cfg.SOLVER.ZERO_WD_1D_PARAM,
        layer_decay=cfg.SOLVER.LAYER_DECAY,
        layer_of=model.layer_of,
        num_layers=model.num_layers,
        lr_scale=model.lr_scale,
    )


def _spared(model: nn.Module, cls_and_positions: bool, tables: Collection[str]) -> set[str]:
    """Names of the parameters that weight decay spares beside the one-dimensional ones.

    tables: parts of names, wherever in the model they stand (the encoder's and the decoder's positions, say); those
    that this model lacks name nothing.
    """
    names = {name for name, _ in model.named_parameters() if not set(tables).isdisjoint(name.split("."))}
    return names | (model.no_weight_decay() if cls_and_positions else set())


def follow(optimizer: torch.optim.Optimizer, lr_of: Callable[[float], float]) -> None:
    """Gives each group what `lr_of` says for its `lr_scale`."""
    for group in optimizer.param_groups:
        group["lr"] = lr_of(group["lr_scale"])
