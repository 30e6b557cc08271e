"""How many bytes of parameters, gradients and optimizer state a process holds under each strategy, from shapes alone.

Sources: Rajbhandari et al. 2020 (ZeRO) for what can be sharded; how fairscale's OSS deals out whole parameters and how
torch's `fully_shard` cuts each along its first axis are those packages' own, read there and tested against them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn

FLOAT = 4
"""Bytes of a number in parameters, gradients and moments: float32 under every strategy."""
STEP_COUNT = 4
"""Bytes of the scalar in which AdamW counts the steps of each parameter."""
MOMENTS = {"adamw": 2, "sgd": 1, "lars": 1}
"""Numbers that an optimizer keeps for each of a parameter's; SGD without momentum keeps none."""


@dataclass(frozen=True)
class Stored:
    """Bytes of the process that holds most.

    parameters, gradients, optimizer: float32. average: the moving average of the weights. gathered: what a sharded
    strategy assembles for the time of its use, at most: whole parameters, and a block's gradients before they are
    exchanged. host: of all these, what lies in the host's memory instead of the device's.
    """

    parameters: int
    gradients: int
    optimizer: int
    average: int = 0
    gathered: int = 0
    host: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return self.parameters + self.gradients + self.optimizer + self.average + self.gathered

    @property
    def device(self) -> int:
        """What lies in the device's memory."""
        return self.total - self.host


Shape = tuple[int, ...]


@dataclass(frozen=True)
class Sizes:
    """The shapes of a model's parameters, as strategies see them.

    groups: of the trained ones, by the optimizer's groups and in its order. frozen: of the others. blocks: of the
    trained and frozen ones in each module that is sharded by itself; root: of all that stand outside of blocks.
    """

    groups: tuple[tuple[Shape, ...], ...]
    frozen: tuple[Shape, ...]
    blocks: tuple[tuple[Shape, ...], ...]
    root: tuple[Shape, ...]

    @classmethod
    def of(cls, model: nn.Module, groups: Sequence[dict], blocks: Sequence[nn.Module]) -> Sizes:
        """Of a model, the parameter groups of its optimizer, and the modules that are sharded by themselves."""
        inside = {id(p) for block in blocks for p in block.parameters()}
        return cls(
            groups=tuple(_shapes(group["params"]) for group in groups),
            frozen=_shapes(p for p in model.parameters() if not p.requires_grad),
            blocks=tuple(_shapes(block.parameters()) for block in blocks),
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

    optimizer: adamw | sgd | lars. moments: numbers that it keeps for each of a parameter's (`MOMENTS`, or 0 for SGD
    without momentum). average: whether the weights' moving average is kept. accumulates: whether gradients of several
    micro-batches add up before they are exchanged. gathered_bytes: of a number in parameters that are assembled for
    use. reshard: whether they are given back after the forward pass of a block. offload: whether shards lie in the
    host's memory.
    """

    optimizer: str = "adamw"
    moments: int = 2
    average: bool = False
    accumulates: bool = False
    gathered_bytes: int = FLOAT
    reshard: bool = True
    offload: bool = False


def replicated(sizes: Sizes, processes: int, options: Options) -> Stored:
    """single, ddp: every process holds everything."""
    return Stored(
        parameters=FLOAT * _count(sizes.all),
        gradients=FLOAT * _count(sizes.trained),
        optimizer=_optimizer_bytes(sizes.trained, options),
        average=FLOAT * _count(sizes.all) * options.average,
    )


def sharded_optimizer(sizes: Sizes, processes: int, options: Options) -> Stored:
    """sharded_ddp: whole parameters are dealt out, and with them their optimizer state and the sum of their gradients.

    Gradients are those after the backward pass. While it runs, those that are not sent yet lie there, too; all of them
    where micro-batches add up.
    """
    shares = deal_out(sizes.groups, processes)
    gradients = [sizes.trained] if options.accumulates else shares
    return replace(
        replicated(sizes, processes, options),
        gradients=max(FLOAT * _count(share) for share in gradients),
        optimizer=max(_optimizer_bytes(share, options) for share in shares),
    )


def deal_out(groups: Sequence[Sequence[Shape]], processes: int) -> list[list[Shape]]:
    """Which parameters each process owns: fairscale's OSS gives each to the one that has the fewest numbers so far."""
    shares: list[list[Shape]] = [[] for _ in range(processes)]
    loads = [0] * processes
    for shape in (shape for group in groups for shape in group):
        owner = loads.index(min(loads))
        shares[owner].append(shape)
        loads[owner] += _count([shape])
    return shares


def fully_sharded(sizes: Sizes, processes: int, options: Options) -> Stored:
    """fsdp2: every process holds a slice of each parameter, and assembles a block's when it is that block's turn.

    The first process is the one that holds most: slices are cut along the first axis, whose length need not divide,
    so a parameter with fewer rows than there are processes is not cut evenly, and a single row not at all.
    """
    trained, everything = ([first_slice(s, processes) for s in shapes] for shapes in (sizes.trained, sizes.all))
    gradients = FLOAT * _count(sizes.trained if options.accumulates else trained)
    held = Stored(
        parameters=FLOAT * _count(everything),
        gradients=gradients,
        optimizer=_optimizer_bytes(trained, options),
        average=FLOAT * _count(everything) * options.average,
    )
    gathered = _gathered(sizes, options)
    on_host = held.total if options.offload else 0
    return replace(held, gathered=gathered, host=on_host)


def first_slice(shape: Shape, processes: int) -> Shape:
    """What the first process has of a parameter: chunks along the first axis, the last smaller or empty."""
    return (-(-shape[0] // processes), *shape[1:]) if shape else shape


def _gathered(sizes: Sizes, options: Options) -> int:
    """Parameters that are whole at the same time, and the gradients of one block that are not exchanged yet.

    What stands outside of blocks stays whole from the forward to the backward pass. Of the blocks, the one that
    computes is whole, and the next, which is fetched meanwhile; all of them where they are not given back.
    """
    blocks = [_count(block) for block in sizes.blocks]
    neighbours = [sum(pair) for pair in zip(blocks, blocks[1:])] or blocks
    whole = _count(sizes.root) + (max(neighbours, default=0) if options.reshard else sum(blocks))
    return options.gathered_bytes * (whole + max([_count(sizes.root), *blocks]))


STORED: dict[str, Callable[[Sizes, int, Options], Stored]] = {
    "single": replicated,
    "ddp": replicated,
    "sharded_ddp": sharded_optimizer,
    "fsdp2": fully_sharded,
}
"""By DIST.STRATEGY: (sizes, number of processes, options) to what the process that holds most holds."""


def _count(shapes: Iterable[Shape]) -> int:
    return sum(math.prod(shape) for shape in shapes)


def _optimizer_bytes(shapes: Sequence[Shape], options: Options) -> int:
    steps = STEP_COUNT * len(shapes) if options.optimizer == "adamw" else 0
    return FLOAT * options.moments * _count(shapes) + steps
