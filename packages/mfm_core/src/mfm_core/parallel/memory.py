"""How many bytes of parameters, gradients and optimizer state a process holds under each strategy, from shapes alone.

Sources: Rajbhandari et al. 2020 (ZeRO) for what can be sharded; how fairscale's OSS deals out whole parameters and how
torch's `fully_shard` cuts each along its first axis are those packages' own, read there and tested against them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain

from torch import Tensor, nn

from mfm_core.parallel import fsdp2, sharded_ddp

FLOAT, HALF = 4, 2
"""Bytes of a number: parameters, gradients and moments are float32 under every strategy."""
STEP_COUNT = 4
"""Bytes of the scalar in which AdamW counts the steps of each parameter."""


@dataclass(frozen=True)
class Stored:
    """Bytes of the process that holds most.

    parameters, gradients, optimizer: what stays from step to step, float32. average: the moving average of the weights.
    gathered: what a sharded strategy puts together for the time of its use, at most: whole parameters, and gradients
    before they are exchanged. in_host: whether all but what is gathered lies in main memory instead of the device's.
    """

    parameters: int
    gradients: int
    optimizer: int
    average: int = 0
    gathered: int = 0
    in_host: bool = False

    @property
    def held(self) -> int:
        """What stays from step to step."""
        return self.parameters + self.gradients + self.optimizer + self.average

    @property
    def device(self) -> int:
        """What lies in the device's memory."""
        return self.gathered + (0 if self.in_host else self.held)

    @property
    def host(self) -> int:
        """What lies in main memory for want of room on the device."""
        return self.held if self.in_host else 0


Shape = tuple[int, ...]


@dataclass(frozen=True)
class Sizes:
    """The shapes of a model's parameters, as strategies see them.

    groups: of the trained ones, by the optimizer's groups and in its order. frozen: of the others. blocks: of the
    trained and frozen ones in each module that is sharded by itself, without `norms`: those stay in float32. root: of
    all that stand outside of blocks.
    """

    groups: tuple[tuple[Shape, ...], ...]
    frozen: tuple[Shape, ...]
    blocks: tuple[tuple[Shape, ...], ...]
    norms: tuple[Shape, ...]
    root: tuple[Shape, ...]

    @classmethod
    def of(cls, model: nn.Module, groups: Sequence[dict]) -> Sizes:
        """Of a model, and the parameter groups of its optimizer."""
        blocks = list(chain.from_iterable(fsdp2.chains(model)))
        inside = {id(p) for block in blocks for p in block.parameters()}
        norms = {id(p): p for block in blocks for norm in fsdp2.norms(block) for p in norm.parameters()}
        return cls(
            groups=tuple(_shapes(group["params"]) for group in groups),
            frozen=_shapes(p for p in model.parameters() if not p.requires_grad),
            blocks=tuple(_shapes(p for p in block.parameters() if id(p) not in norms) for block in blocks),
            norms=_shapes(norms.values()),
            root=_shapes(p for p in model.parameters() if id(p) not in inside),
        )

    @property
    def trained(self) -> list[Shape]:
        """The trained parameters' shapes."""
        return [shape for group in self.groups for shape in group]

    @property
    def all(self) -> list[Shape]:
        """Every parameter's shape."""
        return [*self.trained, *self.frozen]


def _shapes(parameters: Iterable[Tensor]) -> tuple[Shape, ...]:
    return tuple(tuple(p.shape) for p in parameters)


@dataclass(frozen=True)
class Options:
    """How a run trains, as far as it matters for what is stored.

    optimizer: adamw | sgd | lars. momentum: whether it keeps one, where it has the choice. average: whether the moving
    average of the weights is kept. accumulates: whether gradients of several micro-batches add up before they are
    exchanged. low_precision: whether fsdp2's blocks are put together in 16 bits. reshard: whether they are given back
    after their forward pass. offload: whether pieces lie in main memory.
    """

    optimizer: str = "adamw"
    momentum: bool = True
    average: bool = False
    accumulates: bool = False
    low_precision: bool = False
    reshard: bool = True
    offload: bool = False

    def optimizer_bytes(self, shapes: Sequence[Shape]) -> int:
        """What the optimizer keeps for parameters of these shapes."""
        moments = 2 if self.optimizer == "adamw" else int(self.momentum)
        steps = STEP_COUNT * len(shapes) if self.optimizer == "adamw" else 0
        return FLOAT * moments * _count(shapes) + steps


def replicated(sizes: Sizes, processes: int, options: Options) -> Stored:
    """single, ddp: every process holds everything."""
    return Stored(
        parameters=FLOAT * _count(sizes.all),
        gradients=FLOAT * _count(sizes.trained),
        optimizer=options.optimizer_bytes(sizes.trained),
        average=FLOAT * _count(sizes.all) * options.average,
    )


def sharded_optimizer(sizes: Sizes, processes: int, options: Options) -> Stored:
    """sharded_ddp: whole parameters are dealt out, and with them their optimizer state and the sum of their gradients.

    Gradients that travel in buckets stay everywhere, those that travel alone are forgotten where they are not stepped.
    That is after the backward pass: while it runs, what is not sent yet lies there too, and all of it where
    micro-batches add up.
    """
    shares = deal_out(sizes.groups, processes)
    limit = min(sharded_ddp.BUCKET, _count(sizes.all))
    buckets = [_fitting(share, limit) for share in shares]
    alone = [_count(share) - bucket for share, bucket in zip(shares, buckets)]
    gradients = _count(sizes.trained) if options.accumulates else sum(buckets) + max(alone)
    return replace(
        replicated(sizes, processes, options),
        gradients=FLOAT * gradients,
        optimizer=max(options.optimizer_bytes(share) for share in shares),
    )


def deal_out(groups: Sequence[Sequence[Shape]], processes: int) -> list[list[Shape]]:
    """Which parameters each process steps: fairscale's OSS gives each to the one that has the fewest numbers so far."""
    shares: list[list[Shape]] = [[] for _ in range(processes)]
    loads = [0] * processes
    for shape in (shape for group in groups for shape in group):
        owner = loads.index(min(loads))
        shares[owner].append(shape)
        loads[owner] += _count([shape])
    return shares


def _fitting(share: Sequence[Shape], limit: int) -> int:
    """Numbers that find place in a bucket, which ShardedDataParallel fills from the smallest parameter on."""
    filled = 0
    for size in sorted(_count([shape]) for shape in share):
        filled += size if filled + size <= limit else 0
    return filled


def fully_sharded(sizes: Sizes, processes: int, options: Options) -> Stored:
    """fsdp2: every process holds a piece of each parameter, and a block is put together when it computes.

    The first process holds most: pieces are cut along the first axis, whose length need not divide. A parameter with
    fewer rows than there are processes is not cut evenly, and one of a single row not at all.
    """
    trained, everything = ([first_piece(s, processes) for s in shapes] for shapes in (sizes.trained, sizes.all))
    return Stored(
        parameters=FLOAT * _count(everything),
        gradients=FLOAT * _count(trained),
        optimizer=options.optimizer_bytes(trained),
        average=FLOAT * _count(everything) * options.average,
        gathered=_whole_parameters(sizes, options) + _whole_gradients(sizes, options),
        in_host=options.offload,
    )


def first_piece(shape: Shape, processes: int) -> Shape:
    """What the first process has of a parameter: chunks along the first axis, the last smaller or empty."""
    return (-(-shape[0] // processes), *shape[1:]) if shape else shape


def _whole_parameters(sizes: Sizes, options: Options) -> int:
    """What is outside of blocks, and norms, are whole in float32 while a step runs; so is the block that computes, and
    the next, which is fetched meanwhile; all blocks are where they are not given back.
    """
    blocks = [_count(block) for block in sizes.blocks]
    neighbours = [sum(pair) for pair in zip(blocks, blocks[1:])] or blocks
    at_once = max(neighbours, default=0) if options.reshard else sum(blocks)
    return FLOAT * _count([*sizes.root, *sizes.norms]) + (HALF if options.low_precision else FLOAT) * at_once


def _whole_gradients(sizes: Sizes, options: Options) -> int:
    """The largest block's until they are exchanged, or all where micro-batches add up; in float32."""
    largest = max(_count(block) for block in (*sizes.blocks, sizes.root))
    return FLOAT * (_count(sizes.trained) if options.accumulates else largest)


STORED: dict[str, Callable[[Sizes, int, Options], Stored]] = {
    "single": replicated,
    "ddp": replicated,
    "sharded_ddp": sharded_optimizer,
    "fsdp2": fully_sharded,
}
"""By DIST.STRATEGY: (sizes, number of processes, options) to what the process that holds most holds."""


def _count(shapes: Iterable[Shape]) -> int:
    return sum(math.prod(shape) for shape in shapes)
