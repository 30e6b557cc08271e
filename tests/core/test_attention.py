"""Attention is exact whichever kernel computes it; blocks, checkpointing and compilation change no number."""

from __future__ import annotations

import copy
import shutil

import pytest
import torch
import torch.nn.functional as F
from timm.layers import Attention as TimmAttention
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.utils import parameters_to_vector

from mfm_core.corruption.tokens import MaskToken
from mfm_core.heads.linear import SeparateHeads
from mfm_core.losses.masked import MaskedMSE
from mfm_core.nn.attention import PLAIN_ON_CPU, Attention, attend, attend_extended
from mfm_core.nn.vit import VisionTransformer
from mfm_core.objective import MaskedPrediction
from mfm_core.targets.hog import HOGTarget

LENGTHS = {
    dtype: (17, PLAIN_ON_CPU[dtype.itemsize], PLAIN_ON_CPU[dtype.itemsize] + 1)
    for dtype in (torch.float32, torch.bfloat16)
}
"""Short sequences, and those on both sides of the length at which the kernel changes."""


def qkv(tokens, dtype, queries=None, scale=1.0):
    """q, k, v, (2, 3, tokens, 64), that want gradients, and a gradient for the output; `scale` is that of q and k."""
    generator = torch.Generator().manual_seed(0)
    lengths = (queries or tokens, tokens, tokens, queries or tokens)
    q, k, v, upstream = (torch.randn(2, 3, n, 64, generator=generator) for n in lengths)
    return [x.to(dtype).requires_grad_() for x in (scale * q, scale * k, v)], upstream.to(dtype)


def outputs_and_gradients(form, inputs, upstream):
    out = form(*inputs)
    return [out.detach(), *torch.autograd.grad(out, inputs, upstream)]


def written_out(q, k, v):
    return (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(dim=-1) @ v


# ---- attend ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", LENGTHS[torch.float32])
def test_equals_sdpa(tokens):
    inputs, upstream = qkv(tokens, torch.float32)
    expected = outputs_and_gradients(F.scaled_dot_product_attention, inputs, upstream)
    for got, wanted in zip(outputs_and_gradients(attend, inputs, upstream), expected):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("tokens", LENGTHS[torch.bfloat16])
@pytest.mark.parametrize(("spread", "times"), [(0.3, 2), (1.0, 2.5)])
def test_bf16_is_nearly_as_exact_as_sdpa(tokens, spread, times):
    """`spread`: standard deviation of the logits. SDPA keeps them in fp32, plain products round them."""
    inputs, upstream = qkv(tokens, torch.bfloat16, scale=spread**0.5)
    doubles = [x.detach().double().requires_grad_() for x in inputs]
    exact = outputs_and_gradients(written_out, doubles, upstream.double())
    ours = outputs_and_gradients(attend, inputs, upstream)
    sdpa = outputs_and_gradients(F.scaled_dot_product_attention, inputs, upstream)
    for got, theirs, wanted in zip(ours, sdpa, exact):
        assert got.dtype == torch.bfloat16
        error, their_error = ((x.double() - wanted).norm() / wanted.norm() for x in (got, theirs))
        assert error < 2e-2
        assert error <= times * their_error


@pytest.mark.parametrize("tokens", LENGTHS[torch.float32])
def test_extended_features_are_a_bias(tokens):
    """On both sides of the size at which the kernel changes: the logits plus a product, divided by sqrt(D)."""
    inputs, upstream = qkv(tokens, torch.float32, queries=40)
    generator = torch.Generator().manual_seed(1)
    more_q = torch.randn(2, 3, 40, 11, generator=generator).requires_grad_()
    more_k = torch.randn(tokens, 11, generator=generator)

    def biased(q, k, v, more_q):
        return ((q @ k.transpose(-2, -1) + more_q @ more_k.T) / q.shape[-1] ** 0.5).softmax(dim=-1) @ v

    def extended(q, k, v, more_q):
        return attend_extended(q, k, v, more_q, more_k)

    expected = outputs_and_gradients(biased, [*inputs, more_q], upstream)
    for got, wanted in zip(outputs_and_gradients(extended, [*inputs, more_q], upstream), expected):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=5e-6 * float(wanted.abs().max()))


@pytest.mark.parametrize("tokens", [17, 129])
def test_other_number_of_queries(tokens):
    """As in pooled attention, where keys are fewer than queries."""
    inputs, upstream = qkv(tokens, torch.float32, queries=40)
    expected = outputs_and_gradients(written_out, inputs, upstream)
    for got, wanted in zip(outputs_and_gradients(attend, inputs, upstream), expected):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("tokens", [17, 1000])
def test_meta_shapes(tokens):
    q = torch.empty(2, 3, 5, 16, device="meta")
    k = torch.empty(2, 3, tokens, 16, device="meta")
    assert attend(q, k, k).shape == (2, 3, 5, 16)


# ---- block and encoder -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", LENGTHS[torch.float32])
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_layer_equals_timms(tokens, fused, bias):
    torch.manual_seed(0)
    ours, theirs = Attention(48, num_heads=3, qkv_bias=bias), TimmAttention(48, num_heads=3, qkv_bias=bias)
    theirs.load_state_dict(ours.state_dict())
    theirs.fused_attn = fused
    x = torch.randn(2, tokens, 48)
    results = []
    for layer in (ours, theirs):
        leaf = x.clone().requires_grad_()
        out = layer(leaf)
        out.square().sum().backward()
        results.append([out.detach(), leaf.grad, *(p.grad for p in layer.parameters())])
    for got, wanted in zip(*results):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def encoder(side=32, **changes):
    torch.manual_seed(0)
    return VisionTransformer((side, side), (8, 8), (8, 8), (0, 0), embed_dim=32, depth=3, num_heads=2, **changes)


@pytest.mark.parametrize("side", [32, 96])
def test_encoder_equals_one_of_timms_layers(side):
    """17 tokens and 145: both kernels."""
    ours = encoder(side)
    theirs = copy.deepcopy(ours)
    for block in theirs.blocks:
        layer = TimmAttention(32, num_heads=2, qkv_bias=True)
        layer.load_state_dict(block.attn.state_dict())
        block.attn = layer
    images = torch.randn(2, 3, side, side)
    results = []
    for model in (ours, theirs):
        out = model.encode(model.embed(images), [2])[0]
        out.square().mean().backward()
        results.append((out.detach(), gradients(model)))
    for got, wanted in zip(*results):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-6)


def gradients(model):
    return parameters_to_vector(p.grad for p in model.parameters() if p.grad is not None)


def test_activation_checkpointing_gives_the_same_gradients():
    """With drop path on: the second forward pass must draw what the first drew."""
    results = []
    for act_checkpoint in (False, True):
        model = encoder(drop_path=0.5, act_checkpoint=act_checkpoint).train()
        images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(1))
        torch.manual_seed(2)
        out = model.encode(model.embed(images), [1, 2])
        sum(x.square().mean() for x in out).backward()
        results.append((out[-1].detach(), gradients(model)))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    torch.manual_seed(3)
    other = model.encode(model.embed(images), [2])[0]
    assert not torch.equal(other, results[0][0]), "drop path was not on: the test above could not fail"


def test_encoder_on_meta():
    with torch.device("meta"):
        model = encoder(224)
        out = model.encode(model.embed(torch.empty(4, 3, 224, 224)), [0, 2])
    assert [x.shape for x in out] == [(4, 785, 32)] * 2


# ---- torch.compile ---------------------------------------------------------------------------------------------


def tiny_maskfeat():
    backbone = encoder()
    target = HOGTarget((8, 8))
    heads = SeparateHeads(backbone.embed_dim, target.dim)
    return MaskedPrediction(backbone, MaskToken(backbone.embed_dim), heads, target, MaskedMSE(), depths=[2])


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("c++") or shutil.which("g++")), reason="compiling needs a C++ compiler")
def test_compiled_model_trains_the_same():
    torch.compiler.reset()
    model = tiny_maskfeat()
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(4, 3, 32, 32, generator=generator)
    mask = torch.rand(4, 4, 4, generator=generator) < 0.4
    results = []
    for form in (model, torch.compile(model)):
        model.zero_grad()
        output = form(images, mask)
        output.loss.backward()
        results.append((output.loss.detach(), output.target, gradients(model)))
    (loss, target, gradient), (compiled_loss, compiled_target, compiled_gradient) = results
    assert torch.equal(target, compiled_target), "the target is computed outside what is compiled"
    torch.testing.assert_close(compiled_loss, loss, rtol=1e-5, atol=0)
    assert (compiled_gradient - gradient).norm() < 1e-5 * gradient.norm()


def test_all_blocks_are_one_graph():
    """The target alone stands outside: a break inside the encoder would cost what compiling gains."""
    torch.compiler.reset()
    counter = CompileCounterWithBackend("eager")
    model = tiny_maskfeat()
    torch.compile(model, backend=counter)(torch.randn(2, 3, 32, 32), torch.ones(2, 4, 4, dtype=torch.bool))
    assert counter.frame_count == 2, "what comes before the target, and all that comes after"
