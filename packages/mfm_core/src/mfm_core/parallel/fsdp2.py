"""torch's fully_shard (FSDP2; Zhao et al. 2023): of each parameter every process keeps a piece, with its gradient and
its moments; the parameters of a block are put together while it computes.

The optimizer steps plain tensors, this process's pieces: torch's fused SGD knows nothing of distributed tensors, and
with pieces a held-back step, clipping and the loss scaler are those of other strategies.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
from fvcore.common.config import CfgNode
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.modules.conv import _ConvNd
from torch.optim import Optimizer

from mfm_core.parallel.sharded import Sharded, check_groups, numbered, whole_groups
from mfm_core.parallel.strategy import Groups
from mfm_core.parallel.world import World

DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""What parameters, which are kept in float32, are converted to; None is not at all."""


class FSDP2(Sharded):
    """A parameter takes part in a step on all processes or on none.

    param_dtype: blocks are put together in it, autocast's; None for that of their pieces. It is what autocast would
    convert their matrices to, and what stands outside of blocks (embeddings, positions, heads), and norms, which
    autocast leaves alone, stay in float32: the numbers are those of other strategies. reduce_dtype:
    gradients are summed in it. reshard_after_forward: forget the other processes' pieces of a block after its forward
    pass, and put it together again for the backward pass; what stands outside of blocks stays. cpu_offload: pieces,
    gradients and moments lie in main memory, where the optimizer steps them.
    """

    name = "fsdp2"

    def __init__(
        self,
        world: World,
        param_dtype: torch.dtype | None = None,
        reduce_dtype: torch.dtype | None = None,
        reshard_after_forward: bool = True,
        cpu_offload: bool = False,
    ) -> None:
        super().__init__(world)
        self.reshard_after_forward = reshard_after_forward
        self.param_dtype, self.reduce_dtype = param_dtype, reduce_dtype or torch.float32
        pin = world.device.type == "cuda"
        self.offload = CPUOffloadPolicy(pin_memory=pin) if cpu_offload else OffloadPolicy()
        self.mesh = init_device_mesh(world.device.type, (world.size,))
        self._plain: dict[int, nn.Module] = {}
        """Of each sharded model, by id: its structure without the parameters' content; buffers are the model's own."""
        self._pieces: list[tuple[nn.Parameter, nn.Parameter]] = []
        """A model's sharded parameter, and the piece of it that the optimizer steps."""

    @classmethod
    def from_cfg(cls, dist: CfgNode, world: World, precision: str) -> FSDP2:
        """From the DIST section."""
        return cls(
            world,
            param_dtype=DTYPES[precision if dist.PARAM_PRECISION == "auto" else dist.PARAM_PRECISION],
            reduce_dtype=DTYPES[precision if dist.REDUCE_PRECISION == "auto" else dist.REDUCE_PRECISION],
            reshard_after_forward=dist.RESHARD_AFTER_FORWARD,
            cpu_offload=dist.CPU_OFFLOAD,
        )

    def shard(self, model: nn.Module) -> None:
        """Cuts the parameters into pieces, block by block; all begin with the main process's."""
        for tensor in chain(model.parameters(), model.buffers()):
            dist.broadcast(tensor.data, src=0)
        self._plain[id(model)] = _without_content(model)
        for chain_of_blocks in chains(model):
            exact = [norm for block in chain_of_blocks for norm in norms(block)]
            if exact and self.param_dtype is not None:
                self._fully_shard(exact, None, reshard_after_forward=False)  # so small that all make one transfer
            for block in chain_of_blocks:
                self._fully_shard(block, self.param_dtype, self.reshard_after_forward)
        # The backward pass comes back to this first of all; torch would not see it come, for it looks for tensors in
        # what a forward pass returns, and ours returns a PretrainOutput.
        self._fully_shard(model, None, reshard_after_forward=False)

    def _fully_shard(
        self, modules: nn.Module | list[nn.Module], param_dtype: torch.dtype | None, reshard_after_forward: bool
    ) -> None:
        fully_shard(
            modules,
            mesh=self.mesh,
            reshard_after_forward=reshard_after_forward,
            mp_policy=MixedPrecisionPolicy(param_dtype, self.reduce_dtype, cast_forward_inputs=False),
            offload_policy=self.offload,
        )

    def optimizer(self, groups: Groups, make: Callable[[Groups], Optimizer]) -> Optimizer:
        """Over this process's piece of each parameter."""
        self._pieces = [(p, nn.Parameter(_local(p))) for group in groups for p in group["params"]]
        piece = {id(p): mine for p, mine in self._pieces}
        optimizer = make([{**group, "params": [piece[id(p)] for p in group["params"]]} for group in groups])
        if hasattr(optimizer, "norms_of_whole"):
            optimizer.norms_of_whole = self._norms_of_whole
        return optimizer

    def _norms_of_whole(self, norms: Tensor) -> Tensor:
        return self.world.all_sum(norms.to(self.world.device).square()).sqrt().to(norms.device)

    @contextmanager
    def accumulate(self, model: nn.Module, last: bool) -> Iterator[None]:
        """No exchange before the last micro-batch; until then gradients are whole."""
        model.set_requires_gradient_sync(last)
        yield
        if last:
            for parameter, mine in self._pieces:
                mine.data = _local(parameter)
                mine.grad = None if parameter.grad is None else _local(parameter.grad)

    def step(self, optimizer: Optimizer, fault: Tensor) -> None:
        """One step of the pieces, wherever they lie."""
        super().step(optimizer, fault.cpu() if isinstance(self.offload, CPUOffloadPolicy) else fault)

    def zero_grad(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Forgets the gradients of parameters and pieces."""
        for parameter, mine in self._pieces:
            parameter.grad = mine.grad = None

    @torch.no_grad()
    def update_average(self, average: ModelEmaV3, model: nn.Module) -> None:
        """Piece by piece."""
        pairs = [
            (_local(mean), _local(new))
            for mean, new in zip(average.module.state_dict().values(), model.state_dict().values())
        ]
        floats = [pair for pair in pairs if pair[0].is_floating_point()]
        torch._foreach_lerp_(*map(list, zip(*floats)), weight=1.0 - average.get_decay())
        for mean, new in pairs:
            if not mean.is_floating_point():
                mean.copy_(new)

    def whole(self, model: nn.Module) -> nn.Module:
        """A plain copy with all parameters on the device; the buffers are the model's own."""
        outline = self._plain[id(model)]
        plain = copy.deepcopy(outline, {id(buffer): buffer for buffer in outline.buffers()})
        parameters = {name: self._put_together(p).clone() for name, p in model.named_parameters()}
        plain.load_state_dict(parameters, strict=False, assign=True)
        return plain.train(model.training)

    def model_state(self, model: nn.Module) -> dict[str, Tensor]:
        """Put together tensor by tensor, and kept on the main process."""
        state = {}
        for name, tensor in model.state_dict().items():
            tensor = self._put_together(tensor)
            if self.world.is_main:
                state[name] = tensor.to("cpu", copy=True)
        return state

    @torch.no_grad()
    def load_model(self, model: nn.Module, state: dict[str, Tensor]) -> None:
        """Each process takes its pieces. Raises RuntimeError where names or shapes differ."""
        own = model.state_dict()
        other = [name for name in {**own, **state} if _shape(own, name) != _shape(state, name)]
        if other:
            raise RuntimeError(f"{len(other)} tensors are missing or of another shape, {other[0]} first")
        for name, tensor in own.items():
            _local(tensor).copy_(_piece(state[name], tensor) if isinstance(tensor, DTensor) else state[name])

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Put together tensor by tensor, and kept on the main process."""
        state: dict[int, dict[str, Any]] = {}
        for i, (parameter, mine) in enumerate(self._pieces):
            slots = {slot: self._slot(value, parameter, mine) for slot, value in optimizer.state.get(mine, {}).items()}
            if slots:
                state[i] = slots if self.world.is_main else {}
        return {"state": state, "param_groups": self.options(optimizer)}

    def pieces(self, optimizer: Optimizer) -> dict[int, tuple[Tensor, Tensor]]:
        """Of every parameter."""
        return {i: (mine, parameter) for i, (parameter, mine) in enumerate(self._pieces)}

    def options(self, optimizer: Optimizer) -> Groups:
        """The pieces', which are numbered as the parameters are."""
        return whole_groups(optimizer, numbered(optimizer.param_groups))

    def _slot(self, value: Any, parameter: DTensor, mine: Tensor) -> Any:
        """What an optimizer keeps for a parameter, whole: a tensor of its shape, or a number."""
        if not isinstance(value, Tensor) or value.shape != mine.shape:
            return value
        whole = DTensor.from_local(
            value, parameter.device_mesh, parameter.placements, shape=parameter.shape, stride=parameter.stride()
        )
        return self._put_together(whole).cpu()

    def _share(self, optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        check_groups(state, numbered(optimizer.param_groups))
        own = {}
        for i, slots in state["state"].items():
            parameter = self._pieces[i][0]
            own[i] = {
                slot: _piece(value, parameter)
                if isinstance(value, Tensor) and value.shape == parameter.shape
                else value
                for slot, value in slots.items()
            }
        return {**state, "state": own}

    def _put_together(self, tensor: Tensor) -> Tensor:
        tensor = tensor.detach()
        return tensor.to(self.world.device).full_tensor() if isinstance(tensor, DTensor) else tensor


def chains(module: nn.Module) -> Iterator[list[nn.Module]]:
    """The blocks that are each put together at a time: modules of several parts that stand in a list or sequence.

    One list for each of these; blocks in blocks belong to the outer one.
    """
    for child in module.children():
        if isinstance(child, (nn.ModuleList, nn.Sequential)):
            yield [block for block in child if list(block.children()) and list(block.parameters())]
        else:
            yield from chains(child)


def norms(block: nn.Module) -> Iterator[nn.Module]:
    """The block's parts whose parameters only scale and shift: those beside linear layers and convolutions."""
    for part in block.modules():
        if not isinstance(part, (nn.Linear, _ConvNd)) and not list(part.children()) and list(part.parameters()):
            yield part


def _without_content(model: nn.Module) -> nn.Module:
    meta = {id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad) for p in model.parameters()}
    return copy.deepcopy(model, {**meta, **{id(b): b for b in model.buffers()}})


def _local(tensor: Tensor) -> Tensor:
    """This process's piece, in the same memory."""
    tensor = tensor.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _shape(state: dict[str, Tensor], name: str) -> torch.Size | None:
    return state[name].shape if name in state else None


def _piece(whole: Tensor, like: DTensor) -> Tensor:
    """The piece of `whole` that this process holds of `like`: FSDP2 cuts the first axis as `torch.chunk` does."""
    start = like.device_mesh.get_local_rank() * -(-len(whole) // like.device_mesh.size())
    return whole[start : start + len(_local(like))]
