"""What is counted without data equals what autograd keeps in a real step on a CPU, to the byte; and GPU rules hold."""

from __future__ import annotations

import copy
from contextlib import contextmanager, nullcontext

import pytest
import torch
import torch.nn.functional as F
from paths import CONFIGS
from tiny_runs import tiny_clip_config, tiny_config
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.overrides import TorchFunctionMode

from mfm_core.config import load_config
from mfm_core.engine.activations import checkpointed_blocks, count_activations
from mfm_image.modality import IMAGES
from mfm_video.modality import VIDEOS

INPUTS = 5
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16}
MODELS = {
    "maskfeat": (IMAGES, lambda *o: tiny_config("pretrain", "", "", *o)),
    "classifier": (IMAGES, lambda *o: tiny_config("finetune", "", "", *o)),
    "mae": (IMAGES, lambda *o: _of("mae/in1k_VIT_B_16_PT_800e", *SMALL_MAE, *o)),
    "mfm resnet": (IMAGES, lambda *o: _of("mfm/mfm_pretrain__resnet50__img224__300ep", *SMALL_IMAGES, *o)),
    "maskfeat clips": (VIDEOS, lambda *o: tiny_clip_config("maskfeat", "", "", *o)),
    "mae clips": (VIDEOS, lambda *o: tiny_clip_config("mae", "", "", *o)),
}
SMALL_IMAGES = ["DATA.TRAIN_CROP_SIZE", "64", "DATA.TEST_CROP_SIZE", "64"]
SMALL_MAE = [*SMALL_IMAGES, "MVIT.EMBED_DIM", "24", "MVIT.DEPTH", "3", "MVIT.NUM_HEADS", "2"]
SMALL_MAE += ["MASK.DECODER_DEPTH", "2", "MASK.DECODER_EMBED_DIM", "32", "MASK.PRETRAIN_DEPTH", "[2]"]
SMALL_MAE += ["MVIT.SIZE", ""]


def _of(file: str, *overrides: object):
    return load_config(str(CONFIGS / f"{file}.yaml"), list(map(str, overrides)))


def build(name: str, *overrides: object):
    """The model, and meta tensors for one of its inputs."""
    modality, configure = MODELS[name]
    cfg = configure(*overrides)
    model = modality.build_model(cfg)
    return model, modality.example_input(cfg, model.backbone.grid)


def real_inputs(example, inputs: int) -> list[torch.Tensor]:
    """The example's masks are drawn; anything does for what is not a mask."""
    shapes = [((inputs, *t.shape[1:]), t.dtype) for t in example]
    return [torch.rand(shape) if dtype.is_floating_point else torch.rand(shape) < 0.5 for shape, dtype in shapes]


def kept_in(model: nn.Module, batch: list[torch.Tensor], precision: str) -> int:
    """Bytes of the distinct storages that autograd keeps, without those of parameters."""
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage
        return tensor

    dtype = PRECISIONS[precision]
    autocast = torch.autocast("cpu", dtype) if dtype else nullcontext()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), autocast:
        output = model.train()(*batch)
    assert output is not None
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", MODELS)
def test_equals_a_real_step(name, precision):
    model, example = build(name)
    counted = count_activations(model, example, precision, "cpu")
    batch = real_inputs(example, INPUTS)
    assert counted.fixed + counted.of(INPUTS, checkpointed=False) == kept_in(model, batch, precision)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", MODELS)
def test_equals_a_real_step_with_checkpoints(name, precision):
    model, example = build(name, "MODEL.ACT_CHECKPOINT", "True")
    counted = count_activations(model, example, precision, "cpu")
    some, more = (kept_in(model, real_inputs(example, n), precision) for n in (2, 2 + INPUTS))
    assert (more - some) == INPUTS * counted.checkpointed < INPUTS * counted.per_input
    assert 0 <= some - 2 * counted.checkpointed <= counted.fixed


@pytest.mark.parametrize("name", MODELS)
def test_the_largest_block(name):
    """Each block by itself, on the input that it gets in a real step."""
    model, example = build(name)
    counted = count_activations(model, example, "fp32", "cpu")
    inputs: dict[nn.Module, tuple] = {}
    for block in checkpointed_blocks(model):
        block.register_forward_pre_hook(lambda block, args: inputs.__setitem__(block, args))
    model.train()(*real_inputs(example, INPUTS))
    assert len(inputs) == len(checkpointed_blocks(model)) > 1
    alone = [kept_in(b, args, "fp32") - args[0].nbytes for b, args in inputs.items()]
    assert max(alone) == pytest.approx(INPUTS * counted.block, rel=0.01)  # a little of a block grows with no input


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", ["maskfeat", "mae", "maskfeat clips"])
def test_a_gpu_as_torch_imitates_it(name, precision):
    """FakeTensor knows a GPU's rules of autocast; only its choice of attention needs a GPU, so it is given here."""
    model, example = build(name)
    counted = count_activations(model, example, precision, "cuda")
    target = model.target(torch.zeros(INPUTS, *example[0].shape[1:]))
    with FakeTensorMode():
        memo = {id(t): _on_gpu(t) for t in (*model.parameters(), *model.buffers())}
        memo[id(model.target)] = lambda _: torch.empty(target.shape, device="cuda")
        shadow = copy.deepcopy(model, memo).train()
        batch = [torch.empty(INPUTS, *t.shape[1:], dtype=t.dtype, device="cuda") for t in example]
        with _gpu_autocast(PRECISIONS[precision]), _GpuAttention():
            kept = _kept_on_meta(shadow, batch)
    assert counted.fixed + counted.of(INPUTS, checkpointed=False) == kept


def _on_gpu(tensor):
    copied = torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda")
    return nn.Parameter(copied, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else copied


@contextmanager
def _gpu_autocast(dtype):
    torch.set_autocast_enabled("cuda", dtype is not None)
    torch.set_autocast_dtype("cuda", dtype or torch.bfloat16)
    yield
    torch.set_autocast_enabled("cuda", False)
    torch.clear_autocast_cache()


class _GpuAttention(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        scale = (kwargs or {}).get("scale")
        if args[0].dtype is torch.float32 and not torch.is_autocast_enabled("cuda"):
            return torch.ops.aten._scaled_dot_product_efficient_attention(*args, None, True, scale=scale)[0]
        q, k, v = (x.bfloat16() for x in args)
        return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, scale=scale)[0]


def _kept_on_meta(model, batch) -> int:
    parameters = {p.untyped_storage()._cdata for p in model.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in parameters:
            kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(*batch)
    return sum(storage.nbytes() for storage in kept.values())
