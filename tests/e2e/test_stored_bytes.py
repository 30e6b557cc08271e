"""The bytes that the strategies' formulas promise are those that processes hold in a real step, on each of them; and
what they exchange in it.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import contextmanager
from dataclasses import asdict
from itertools import chain, product
from pathlib import Path
from typing import Any

import pytest
import torch
from strategy_runs import Case, in_world, steps_of, trainer_of
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from mfm_core.engine.memory import options_from_cfg
from mfm_core.engine.trainer import Trainer
from mfm_core.optim.build import groups_from_cfg
from mfm_core.parallel.memory import STORED, Sizes
from mfm_core.parallel.world import World
from mfm_image.models import build_model as build_images
from mfm_video.models import build_model as build_videos

pytestmark = pytest.mark.xdist_group("stored bytes")  # what they share is made once
EMA = ("TRAIN.EMA_DECAY", 0.9)
TWICE = ("TRAIN.ACCUM_STEPS", 2)
WHOLE = ("DIST.RESHARD_AFTER_FORWARD", False)
CASES = [
    Case(f"{strategy} {solver}", strategy, solver=solver)
    for strategy, solver in product(("ddp", "sharded_ddp", "fsdp2"), ("adamw", "sgd", "lars"))
]
CASES += [
    Case("sgd without momentum", "ddp", solver="sgd", overrides=("SOLVER.MOMENTUM", 0.0, "SOLVER.NESTEROV", False)),
    Case("probe", "sharded_ddp", kind="probe"),
    Case("sharded_ddp average", "sharded_ddp", overrides=EMA),
    Case("sharded_ddp accumulating", "sharded_ddp", overrides=TWICE, parts=2),
    Case("sharded_ddp small buckets", "sharded_ddp", twist="no buckets"),
    Case("sharded_ddp small buckets accumulating", "sharded_ddp", twist="no buckets", overrides=TWICE, parts=2),
    Case("fsdp2 average", "fsdp2", overrides=EMA),
    Case("fsdp2 bf16", "fsdp2", precision="bf16"),
    Case("fsdp2 whole", "fsdp2", overrides=WHOLE),
    Case("fsdp2 whole bf16", "fsdp2", overrides=WHOLE, precision="bf16"),
    Case("fsdp2 clips", "fsdp2", kind="mvit"),
    Case("ddp accumulating", "ddp", overrides=TWICE, parts=2),
    Case("fsdp2 accumulating", "fsdp2", overrides=TWICE, parts=2),
]
EXCHANGES = {"ddp": "c10d::allreduce_", "sharded_ddp": "c10d::reduce_", "fsdp2": "c10d::_reduce_scatter_base_"}
"""How each strategy's gradients travel."""


def held_bytes(case: Case, world: World, folder: Path) -> dict[str, Any]:
    """What each process holds in the second step, of the process that holds most; and what the formulas say."""
    trainer = trainer_of(case, world, folder / case.name)
    found: dict[str, int] = {"gathered": 0, "gradients": 0}
    _look_into_blocks(trainer, found)
    accumulate = trainer.strategy.accumulate

    @contextmanager
    def watched(model, last):
        with accumulate(model, last):
            yield
        found["gradients"] = max(found["gradients"], _gradients(trainer))

    trainer.strategy.accumulate = watched
    steps_of(trainer, 1)
    with torch.autograd.profiler.profile(use_kineto=False) as watch:
        steps_of(trainer, 2)
    found |= {name: sum(event.name == name for event in watch.function_events) for name in EXCHANGES.values()}
    found["parameters"] = _bytes(trainer.state.model.parameters())
    found["average"] = _bytes(trainer.state.average.parameters()) if trainer.average else 0
    slots = chain(*(slots.values() for slots in trainer.state.optimizer.state.values()))
    found["optimizer"] = _bytes(slot for slot in slots if isinstance(slot, torch.Tensor))
    everyone = world.gather(found)
    most = {name: max(held[name] for held in everyone) for name in found}
    return {**most, "promised": asdict(_promised(case, trainer, world))}


def _promised(case: Case, trainer: Trainer, world: World):
    model = (build_videos if case.kind == "mvit" else build_images)(trainer.saver.cfg)
    sizes = Sizes.of(model, groups_from_cfg(model, trainer.saver.cfg))
    return STORED[case.strategy](sizes, world.size, options_from_cfg(trainer.saver.cfg, case.precision))


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Of the distinct storages."""
    local = [t.to_local() if isinstance(t, DTensor) else t for t in (t.detach() for t in tensors)]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in local}
    return sum(storages.values())


def _gradients(trainer: Trainer) -> int:
    tensors = [p.grad for p in trainer.state.model.parameters() if p.grad is not None]
    buckets = [bucket.buffer for bucket in getattr(trainer.model, "_bucket_list", ())]
    return _bytes([*tensors, *buckets])


def _look_into_blocks(trainer: Trainer, found: dict[str, int]) -> None:
    """Notes, in the middle of each block, forwards and backwards, how many bytes of whole parameters there are."""
    units = [module for module in trainer.state.model.modules() if isinstance(module, FSDPModule)]
    groups = [unit._get_fsdp_state()._fsdp_param_group for unit in units]
    parameters = [p for group in groups if group is not None for p in group.fsdp_params]

    def look(*_) -> None:
        whole = [t.untyped_storage() for p in parameters for t in getattr(p, "all_gather_outputs", ())]
        found["gathered"] = max(found["gathered"], sum(s.nbytes() for s in whole))

    def before(_, inputs) -> None:
        look()
        inputs[0].register_hook(look)

    for unit in units:
        if hasattr(unit, "mlp"):
            unit.mlp.register_forward_pre_hook(before)


@pytest.fixture(scope="module", params=[2, 3])
def held(request, tmp_path_factory):
    return in_world(request.param, CASES, tmp_path_factory.mktemp("worlds"), held_bytes)


@pytest.mark.parametrize("name", [case.name for case in CASES])
def test_what_is_held(name, held):
    found = held[name]
    for part in ("parameters", "gradients", "optimizer", "average"):
        assert found[part] == found["promised"][part], part


@pytest.mark.parametrize("strategy", EXCHANGES)
def test_micro_batches_exchange_nothing_of_their_own(strategy, held):
    """Only the last one's backward pass sends gradients: two micro-batches take as many messages as one."""
    once, twice = held[f"{strategy} adamw"], held[f"{strategy} accumulating"]
    for name in EXCHANGES.values():
        assert once[name] == twice[name], name
    assert once[EXCHANGES[strategy]] > (2 if strategy == "ddp" else 0)  # two are the loss's and the weights'


@pytest.mark.parametrize("name", [case.name for case in CASES if case.strategy == "fsdp2"])
def test_what_is_put_together(name, held):
    """Without the gradients, which are promised with it, and without what is on its way for the next block."""
    found, everything = held[name]["gathered"], held["fsdp2 whole"]["gathered"]
    promised = held[name]["promised"]["gathered"]
    assert promised / 3 < found < promised
    assert found == everything if name == "fsdp2 whole" else found < everything or "clips" in name
