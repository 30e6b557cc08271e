"""fairscale's OSS and ShardedDataParallel (ZeRO stage 2: Rajbhandari et al. 2020; Xu et al. 2020): each process keeps
the optimizer state of some parameters, gradients go to the process that steps them, and weights come back from it.

fairscale is no longer maintained. What goes wrong with today's torch is kept out here:

- `optimizer.zero_grad()` sets gradients to None, which tears them out of the buckets that are exchanged: the wrapped
  model's own `zero_grad` is called.
- `OSS.clip_grad_norm` remembers which parameters had a gradient when it was first called: norms are `Sharded`'s.
- A gradient in a bucket is zero, never None, where its parameter took no part in a step; an optimizer would let its
  moments and weights decay: such gradients are set aside while the optimizer steps.
- `OSS.load_state_dict` changes what it is given and keeps the moments twice, `OSS.consolidate_state_dict` pickles GPU
  tensors: the state is read from and written to the optimizer of the share, and tensors are sent one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import chain
from typing import Any

import torch
from fairscale.nn.data_parallel import ShardedDataParallel
from fairscale.optim.oss import OSS
from torch import Tensor, nn
from torch.optim import Optimizer

from mfm_core.errors import UserError
from mfm_core.parallel.sharded import Sharded, check_groups, numbered, whole_groups
from mfm_core.parallel.strategy import Groups
from mfm_core.parallel.world import World

BUCKET = 2**23
"""Gradients of so many numbers for each receiving process travel together, fairscale's own choice; those that find no
place travel alone."""


class ShardedDDP(Sharded):
    """Which parameters take part in a step may change from step to step, but not from process to process, and what
    takes part in a step takes part in its last micro-batch.
    """

    name = "sharded_ddp"

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self._oss: OSS | None = None
        self._used: set[int] = set()
        """Parameters, by id, that had a gradient in the current micro-batch; `_earlier`: in the step's before it."""
        self._earlier: set[int] = set()
        self._aside: list[tuple[nn.Parameter, Tensor]] = []
        self._agreed = False

    def optimizer(self, groups: Groups, make: Callable[[Groups], Optimizer]) -> Optimizer:
        """Over the parameters that fairscale gives to this process."""
        self._oss = OSS([dict(group) for group in groups], optim=lambda share, **_: make(share))
        self._numbers = numbered(self._oss.param_groups)
        self._number = {id(p): i for i, p in enumerate(chain(*(g["params"] for g in self._oss.param_groups)))}
        return self._oss.optim

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model under ShardedDataParallel. Running statistics are the training loop's to keep equal."""
        used = self._used  # and not self: parameters would hold the strategy, which holds them, beyond the run's end
        for parameter in chain(*(g["params"] for g in self._oss.param_groups)):
            parameter.register_post_accumulate_grad_hook(lambda p: used.add(id(p)))
        return ShardedDataParallel(
            model, self._oss, broadcast_buffers=False, reduce_buffer_size=BUCKET, auto_refresh_trainable=False
        )

    @contextmanager
    def accumulate(self, model: nn.Module, last: bool) -> Iterator[None]:
        """No exchange before the last micro-batch. Raises UserError where parameters take part unevenly."""
        self._earlier |= self._used
        self._used.clear()
        with nullcontext() if last and self._agreed else model.no_sync():
            yield
        if last:
            self._refuse(not self._earlier <= self._used)
            if not self._agreed:
                self._first_exchange(model)
            for parameter in chain(*(g["params"] for g in self._oss.optim.param_groups)):
                if id(parameter) not in self._used and parameter.grad is not None:
                    self._aside.append((parameter, parameter.grad))
                    parameter.grad = None

    def _first_exchange(self, model: ShardedDataParallel) -> None:
        """After the backward pass of the first step, when it is known whether all processes have the same to exchange.

        Where they have not, fairscale would mix up gradients or wait for ever.
        """
        used = sorted(self._number[i] for i in self._used)
        self._refuse(any(others != used for others in self.world.gather(used)))
        for parameter in chain(*(g["params"] for g in self._oss.param_groups)):
            if parameter.grad is None:  # in no bucket and not used; fairscale now wants one of each
                parameter.grad = torch.zeros_like(parameter)
        model.reduce()
        self._agreed = True

    @staticmethod
    def _refuse(uneven: bool) -> None:
        if uneven:
            raise UserError(
                "A parameter took part in a step on some processes or in some micro-batches only, which DIST.STRATEGY "
                "sharded_ddp cannot exchange; take DIST.STRATEGY ddp with DIST.FIND_UNUSED True."
            )

    def step(self, optimizer: Optimizer, fault: Tensor) -> None:
        """One step of the share; then everyone's weights go to everyone."""
        for group, own in zip(self._oss.param_groups, optimizer.param_groups):  # from which fairscale copies them back
            group.update((key, value) for key, value in own.items() if key != "params")
        optimizer.found_inf = fault
        self._oss.step()

    def zero_grad(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Gradients in buckets become zeros in their place, others None."""
        for parameter, gradient in self._aside:
            parameter.grad = gradient
        self._aside.clear()
        self._earlier.clear()
        self._used.clear()
        model.zero_grad(set_to_none=True)

    def model_state(self, model: nn.Module) -> dict[str, Tensor]:
        """Copies, for parameters share their memory with others of the same process's share."""
        return {name: tensor.to("cpu", copy=True) for name, tensor in model.state_dict().items()}

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """All shares, tensor by tensor sent to the main process."""
        own = {self._number[id(p)]: slots for p, slots in optimizer.state.items()}
        outlines = [{i: {k: _outline(v) for k, v in slots.items()} for i, slots in own.items()}]
        state: dict[int, dict[str, Any]] = {}
        for owner, outline in enumerate(self.world.gather(outlines[0])):
            for i, slots in outline.items():
                state[i] = {}
                for slot, content in slots.items():
                    tensor = own[i][slot] if owner == self.world.rank else content
                    state[i][slot] = self.world.to_main(tensor, owner) if isinstance(content, Tensor) else content
        return {"state": dict(sorted(state.items())), "param_groups": self.options(optimizer)}

    def pieces(self, optimizer: Optimizer) -> dict[int, tuple[Tensor, Tensor]]:
        """Of the share."""
        return {self._number[id(p)]: (p, p) for group in optimizer.param_groups for p in group["params"]}

    def options(self, optimizer: Optimizer) -> Groups:
        """The share's, with the numbers of all parameters."""
        return whole_groups(optimizer, self._numbers)

    def _share(self, optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        check_groups(state, self._numbers)
        own = [[self._number[id(p)] for p in group["params"]] for group in optimizer.param_groups]
        groups = [{**group, "params": numbers} for group, numbers in zip(state["param_groups"], own)]
        return {"state": {i: state["state"][i] for i in chain(*own) if i in state["state"]}, "param_groups": groups}


def _outline(value: Any) -> Any:
    """A tensor's shape and type without its content; anything else as it is."""
    return torch.empty_like(value, device="meta") if isinstance(value, Tensor) else value
