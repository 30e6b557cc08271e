"""Who this process is among the processes of a run, and how they speak to each other."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mfm_core.errors import UserError
from mfm_core.parallel.attempt import store_of_this_start

_CONNECTION = re.compile(r"gloo|NCCL|Connection (closed|reset|refused)|Broken pipe|Timed out waiting|[Ss]ocket", re.I)
"""How torch's backends speak of a connection to another process; only some of their errors have a type."""


@dataclass(frozen=True)
class World:
    """rank of size processes; local_rank on this machine of num_shards machines; the device it computes on."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    num_shards: int = 1
    device: torch.device = torch.device("cpu")

    @property
    def is_main(self) -> bool:
        """True on the one process that writes files and logs."""
        return self.rank == 0

    def all_sum(self, value: Tensor) -> Tensor:
        """The sum of `value` over all processes; `value` itself stays as it is, as does one on the meta device."""
        if self.size == 1 or value.is_meta:
            return value
        total = value.clone()
        dist.all_reduce(total)
        return total

    def all_max(self, value: Tensor) -> Tensor:
        """The largest of each element of `value` over all processes; `value` itself stays as it is."""
        if self.size == 1:
            return value
        largest = value.clone()
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return largest

    def gather(self, thing: Any) -> list[Any]:
        """What every process passes in, in the order of ranks."""
        if self.size == 1:
            return [thing]
        things: list[Any] = [None] * self.size
        dist.all_gather_object(things, thing)
        return things

    def to_main(self, tensor: Tensor, owner: int) -> Tensor:
        """The tensor of process `owner`, on the CPU of the main process; to the others it returns what they pass in.

        Who does not own it passes in one of that shape and type, be it on the meta device. All processes call.
        """
        if self.rank == owner != 0:
            dist.send(tensor.to(self.device).contiguous(), dst=0)
        if not self.is_main:
            return tensor
        if owner != 0:
            tensor = torch.empty_like(tensor, device=self.device, memory_format=torch.contiguous_format)
            dist.recv(tensor, src=owner)
        return tensor.cpu()

    def from_main(self, thing: Any) -> Any:
        """What the main process passes in."""
        if self.size == 1:
            return thing
        box = [thing]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def barrier(self) -> None:
        """Waits for all processes."""
        if self.size > 1:
            dist.barrier()


def choose_device(choice: str, local_rank: int = 0) -> torch.device:
    """The device for `DEVICE` auto | cpu | cuda. Raises UserError for cuda without a GPU."""
    if choice == "cuda" and not torch.cuda.is_available():
        raise UserError("DEVICE is cuda, but torch sees no GPU; set DEVICE auto or cpu.")
    if choice == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", local_rank)


def number_of(variable: str, default: int) -> int:
    """What torchrun, or `launch`, says in a variable of the environment. Raises UserError where that is no number."""
    text = os.environ.get(variable, str(default))
    if not text.isdecimal():
        raise UserError(f"The environment has {variable}={text}; torchrun sets a number there. Unset it to run alone.")
    return int(text)


def join_world(device_choice: str, timeout_s: float) -> World:
    """Joins the processes that torchrun or `launch` started, by their environment variables; alone without them."""
    size = number_of("WORLD_SIZE", 1)
    local_rank, rank = number_of("LOCAL_RANK", 0), number_of("RANK", 0)
    if size != 1 and rank >= size:
        raise UserError(f"The environment has RANK={rank} and WORLD_SIZE={size}; ranks count from 0.")
    device = choose_device(device_choice, local_rank)
    if device.type == "cuda":
        gpus = torch.cuda.device_count()
        if local_rank >= gpus:
            raise UserError(f"At least {local_rank + 1} processes were started here, but torch sees {gpus} GPUs.")
        torch.cuda.set_device(device)
    if size == 1:
        return World(device=device)
    if device.type == "cpu" and _one_machine():
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    try:
        store = store_of_this_start(rank, size, timeout_s)
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            timeout=timedelta(seconds=timeout_s),
            device_id=device if device.type == "cuda" else None,
            **({} if store is None else {"store": store, "rank": rank, "world_size": size}),
        )
    except (RuntimeError, ValueError) as error:
        where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise UserError(
            f"Process {os.environ.get('RANK')} did not find all {size} processes at {where} within DIST.TIMEOUT "
            f"{timeout_s:g} s ({_line(error)})."
        ) from None
    return World(dist.get_rank(), size, local_rank, _machines(size), device)


def is_elastic() -> bool:
    """Whether torchrun started this process: it may start others again, and fewer or more of them."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def is_restart(world: World) -> bool:
    """Whether torchrun has started the run again, on any machine. All processes call."""
    return any(world.gather(number_of("TORCHELASTIC_RESTART_COUNT", 0) > 0))


def loss_of_peer(error: Exception, world: World, timeout_s: float) -> str | None:
    """What to say where `error` comes of another process that died or no longer answers; None for any other."""
    if world.size == 1 or not isinstance(error, RuntimeError):
        return None
    if not isinstance(error, dist.DistError) and not _CONNECTION.search(str(error)):
        return None
    return (
        f"Process {world.rank} of {world.size} lost another one, which died or did not answer within DIST.TIMEOUT "
        f"{timeout_s:g} s ({_line(error)}). Continue from the last checkpoint with the same command."
    )


def leave_world() -> None:
    """Closes the connections to the other processes."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:160]


def _machines(size: int) -> int:
    """torchrun counts them; they need not have the same number of processes. Else they have."""
    local_size = max(1, number_of("LOCAL_WORLD_SIZE", size))
    return number_of("GROUP_WORLD_SIZE", max(1, size // local_size))


def _one_machine() -> bool:
    return os.environ.get("LOCAL_WORLD_SIZE") == os.environ.get("WORLD_SIZE")
