"""The strategies by name, and the choice among them."""

from __future__ import annotations

from fvcore.common.config import CfgNode

from mfm_core.errors import UserError
from mfm_core.parallel.ddp import DDP
from mfm_core.parallel.fsdp2 import FSDP2
from mfm_core.parallel.sharded_ddp import ShardedDDP
from mfm_core.parallel.strategy import Single, Strategy
from mfm_core.parallel.world import World, is_elastic
from mfm_core.registry import Registry

STRATEGIES = Registry("strategy", key="DIST.STRATEGY")
for _strategy in (Single, DDP, ShardedDDP, FSDP2):
    STRATEGIES.register(_strategy.name)(_strategy)


def build_strategy(dist: CfgNode, world: World, precision: str) -> Strategy:
    """The strategy of the DIST section.

    One process that torchrun has left takes single. Raises UserError where it does not fit the number of processes.
    """
    name = strategy_name(dist, world.size)
    if name != "single" and world.size == 1:
        if not is_elastic():
            raise UserError(f"DIST.STRATEGY {name} shares a model among processes, and there is one; take auto.")
        name = "single"
    return STRATEGIES.get(name).from_cfg(dist, world, precision)


def strategy_name(dist: CfgNode, processes: int) -> str:
    """What DIST.STRATEGY says; auto is single for one process, and sharded_ddp for several."""
    auto = "sharded_ddp" if processes > 1 else "single"
    return auto if dist.STRATEGY == "auto" else dist.STRATEGY
