"""How much of a forward pass stays in memory for the backward pass, counted without data and without the device.

The model runs on tensors that have shapes, number formats and the name of a device, but no content: autograd, autocast
and the model's own choices act as they would there. (torch's FakeTensor has the same idea; it checks far more and
takes many times as long.)
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from mfm_core.engine.precision import DTYPES

aten = torch.ops.aten
INPUTS = 1009
"""The batch that is tried, a prime that no other size contains: bytes that are a multiple of it grow with the batch."""


@dataclass(frozen=True)
class Activations:
    """Bytes that autograd keeps from the forward for the backward pass, parameters left out.

    fixed: whatever the batch; under autocast, the weights in low precision. fixed_outside: of these, outside of blocks.
    per_input: added by each input. checkpointed: the same where blocks are computed again in the backward pass, which
    keeps their inputs only.
    block: what the largest block keeps beside its input; where blocks are computed again, one at a time has it.
    """

    fixed: int
    fixed_outside: int
    per_input: int
    checkpointed: int
    block: int

    def of(self, inputs: int, checkpointed: bool) -> int:
        """Of a batch of so many inputs, at most: all blocks', or what checkpoints leave of them and one block's."""
        return inputs * (self.checkpointed + self.block if checkpointed else self.per_input)


def count_activations(
    model: nn.Module, example: tuple[Tensor, ...], precision: str, device_type: str = "cuda"
) -> Activations:
    """Counts for training `model`, of any device, in fp32 | bf16 | fp16 on a device of this type, cuda or cpu.

    example: meta tensors for one input of its forward pass.
    """
    batch = tuple(t.expand(INPUTS, *t.shape[1:]).contiguous() for t in example)
    shadow = _shadow(model, batch, device_type)
    kept = _KeptBytes(shadow)
    with _acting(precision, device_type), kept.watch():
        shadow(*(_Named(t, device_type) for t in batch))
    return Activations(
        fixed=kept.everywhere.fixed,
        fixed_outside=kept.outside.fixed,
        per_input=kept.everywhere.per_input,
        checkpointed=kept.outside.per_input,
        block=max((block.per_input for block in kept.blocks), default=0),
    )


def checkpointed_blocks(model: nn.Module) -> list[nn.Module]:
    """The modules that MODEL.ACT_CHECKPOINT computes again."""
    owners = [module for module in model.modules() if hasattr(module, "act_checkpoint")]
    parts = [part for owner in owners for part in owner.children()]
    return [block for part in parts if isinstance(part, (nn.ModuleList, nn.Sequential)) for block in part]


def _shadow(model: nn.Module, batch: tuple[Tensor, ...], device_type: str) -> nn.Module:
    """A copy of the model's structure in training mode, on named tensors; its target is computed beforehand.

    A target keeps nothing, and may run a kernel of its own.
    """
    memo: dict[int, Any] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        named = _Named(torch.empty_like(tensor, device="meta"), device_type)
        memo[id(tensor)] = named.requires_grad_(tensor.requires_grad)
    target = getattr(model, "target", None)
    if target is not None:
        on_meta = {id(t): torch.empty_like(t, device="meta") for t in _tensors_of(target)}
        memo[id(target)] = _Given(_Named(copy.deepcopy(target, on_meta)(batch[0]), device_type))
    shadow = copy.deepcopy(model, memo).train()
    for module in shadow.modules():
        if hasattr(module, "act_checkpoint"):
            module.act_checkpoint = False
    return shadow


def _tensors_of(thing: Any) -> list[Tensor]:
    return [*thing.parameters(), *thing.buffers()] if isinstance(thing, nn.Module) else []


class _Given(nn.Module):
    """Returns what it was made with."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output

    def forward(self, *_: Any) -> Tensor:
        return self.output


class _Named(Tensor):
    """A tensor of the meta device that says it is on another. torch itself takes it for one on the CPU."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor, device_type: str) -> _Named:
        strides, offset = inner.stride(), inner.storage_offset()
        return Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=strides, storage_offset=offset, dtype=inner.dtype, device="cpu"
        )

    def __init__(self, inner: Tensor, device_type: str) -> None:
        self.inner, self.device_type = inner, device_type

    @property
    def device(self) -> torch.device:
        return torch.device(self.device_type)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError("A named tensor is used outside of its mode.")


class _OnMeta(TorchDispatchMode):
    """Every operation happens on the meta device, and its results say that they are on this one."""

    def __init__(self, device_type: str) -> None:
        super().__init__()
        self.device_type = device_type

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        from_nothing = not types and any(argument.name == "device" for argument in func._schema.arguments)
        args = _each(args, _inner)
        kwargs = {name: _each(value, _inner) for name, value in (kwargs or {}).items()}
        if from_nothing or kwargs.get("device") is not None:
            kwargs = {**kwargs, "device": "meta"}
        return _each(func(*args, **kwargs), lambda tensor: _Named(tensor, self.device_type))


def _each(thing: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """`thing` with its tensors, in lists and tuples too, changed. (torch's tree_map takes as long as all the rest.)"""
    if isinstance(thing, Tensor):
        return change(thing)
    if isinstance(thing, (list, tuple)):
        return type(thing)([_each(part, change) for part in thing])
    return thing


def _inner(tensor: Tensor) -> Tensor:
    return tensor.inner if isinstance(tensor, _Named) else tensor.to("meta")


class _AsOnCuda(TorchFunctionMode):
    """Where a GPU does otherwise than the CPU that torch takes the tensors for.

    Attention has other kernels; autocast has norms in float32, and leaves the number format of poolings alone.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return _fused_attention(*args[:3], scale=kwargs.get("scale"))
        if func is F.layer_norm and torch.is_autocast_enabled("cpu"):
            args = (args[0].float(), *args[1:])
        if getattr(func, "__name__", "") in ("max_pool3d", "avg_pool3d"):
            with torch.autocast("cpu", enabled=False):
                return func(*args, **kwargs)
        if kwargs.get("device") is not None:  # torch would wake a GPU for it
            kwargs = {**kwargs, "device": "meta"}
        return func(*args, **kwargs)


def _fused_attention(q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> Tensor:
    """As a GPU takes it: flash attention in 16 bits, the memory-efficient kernel in 32."""
    if torch.is_autocast_enabled("cpu"):
        q, k, v = (x.to(torch.get_autocast_dtype("cpu")) for x in (q, k, v))
    if q.dtype is torch.float32:
        return aten._scaled_dot_product_efficient_attention(q, k, v, None, True, scale=scale)[0]
    return aten._scaled_dot_product_flash_attention(q, k, v, scale=scale)[0]


@contextmanager
def _acting(precision: str, device_type: str) -> Iterator[None]:
    """Named tensors compute in this; autocast follows the CPU's rules, and a GPU's where these differ."""
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # of a GPU that is named and is not there
        if precision != "fp32":
            stack.enter_context(torch.autocast("cpu", dtype=DTYPES[precision]))
        stack.enter_context(_OnMeta(device_type))
        if device_type == "cuda":
            stack.enter_context(_AsOnCuda())
        yield


class _KeptBytes:
    """Counts the bytes of the distinct tensors that autograd keeps, parameters left out.

    outside: of those kept outside of blocks, and the blocks' inputs: what is kept where blocks are checkpointed.
    blocks: what each block keeps beside its inputs.
    """

    def __init__(self, model: nn.Module) -> None:
        self._parameters = {_storage(p)[0] for p in model.parameters()}
        self._alive: list[Tensor] = []
        self.everywhere, self.outside = _Distinct(), _Distinct()
        self.blocks: list[_Distinct] = []
        self._block: _Distinct | None = None
        for block in checkpointed_blocks(model):
            block.register_forward_pre_hook(self._enter)
            block.register_forward_hook(self._leave)

    def watch(self) -> torch.autograd.graph.saved_tensors_hooks:
        """The context to run the forward pass in."""
        return torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)

    def _pack(self, tensor: Tensor) -> Tensor:
        self._keep(tensor, self.everywhere, self.outside if self._block is None else self._block)
        return tensor

    def _keep(self, tensor: Tensor, *where: _Distinct) -> None:
        key, size = _storage(tensor)
        if key not in self._parameters:
            self._alive.append(tensor)  # or another tensor could come to lie where this one lay
            for distinct in where:
                distinct.add(key, size)

    def _enter(self, _: nn.Module, inputs: tuple[Any, ...]) -> None:
        for tensor in inputs:
            if isinstance(tensor, Tensor):
                self._keep(tensor, self.outside)
        self._block = _Distinct(self.outside)

    def _leave(self, *_: Any) -> None:
        self.blocks.append(self._block)
        self._block = None


class _Distinct:
    """Adds up the bytes of storages, each once, without those that another one has counted before."""

    def __init__(self, other: _Distinct | None = None) -> None:
        self._seen: set[int] = set(other._seen) if other is not None else set()
        self.fixed = self.per_input = 0

    def add(self, key: int, size: int) -> None:
        """Counts this storage, if it is new."""
        if key in self._seen:
            return
        self._seen.add(key)
        if size % INPUTS == 0:
            self.per_input += size // INPUTS
        else:
            self.fixed += size


def _storage(tensor: Tensor) -> tuple[int, int]:
    """What tells a storage from others, and its bytes."""
    storage = _inner(tensor).untyped_storage() if isinstance(tensor, _Named) else tensor.untyped_storage()
    return storage._cdata, storage.nbytes()
