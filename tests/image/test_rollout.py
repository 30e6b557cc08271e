"""Rollouts written out entry by entry; attention that is recomputed for pictures changes nothing else."""

from __future__ import annotations

import pytest
import torch

from mfm_core.errors import UserError
from mfm_core.heads.classification import ClassificationHead
from mfm_core.nn.vit import VisionTransformer
from mfm_core.objective import Classifier
from mfm_image.pictures.attention import reads_patches
from mfm_image.rollout import attention_map, attention_rollout, gradient_map, gradient_rollout, recomputed_attention

DEPTH, HEADS, PATCHES = 3, 2, 16


def classifier(cls_token: bool, mean_pooling: bool, **changes) -> Classifier:
    torch.manual_seed(0)
    backbone = VisionTransformer((32, 32), (8, 8), (8, 8), (0, 0), 32, DEPTH, HEADS, cls_token=cls_token, **changes)
    for block in backbone.blocks:
        block.attn.qkv.weight.data.mul_(8)  # untrained attention would be even everywhere
    head = ClassificationHead(32, 5, int(cls_token), mean_pooling)
    return Classifier(backbone, head).eval()


def images(count: int = 2):
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def some_attention(prefix: int):
    generator = torch.Generator().manual_seed(2)
    shape = (2, HEADS, PATCHES + prefix, PATCHES + prefix)
    return [torch.randn(shape, generator=generator).mul(2).softmax(dim=-1) for _ in range(DEPTH)]


def written_out(layers, prefix, pooled, share):
    """Of one image: lists of numbers, one step after the other. layers: (N, N), heads already joined."""
    tokens = len(layers[0])
    flow = [[float(i == j) for j in range(tokens)] for i in range(tokens)]
    alone = [1.0] * tokens
    for layer in layers:
        paid = sorted((float(layer[i, j]), i, j) for i in range(tokens) for j in range(prefix, tokens))
        dropped = {(i, j) for _, i, j in paid[: int(len(paid) * share)]}
        mixed = [
            [(0.0 if (i, j) in dropped else float(layer[i, j])) + float(i == j) for j in range(tokens)]
            for i in range(tokens)
        ]
        sums = [sum(row) for row in mixed]
        mixed = [[value / total for value in row] for row, total in zip(mixed, sums)]
        alone = [a / total for a, total in zip(alone, sums)]
        flow = [[sum(mixed[i][k] * flow[k][j] for k in range(tokens)) for j in range(tokens)] for i in range(tokens)]
    for i in range(tokens):
        flow[i][i] -= alone[i]
    rows = flow[prefix:] if pooled else flow[:1]
    patches = [sum(row[j] for row in rows) for j in range(prefix, tokens)]
    return torch.tensor([value / max(patches) for value in patches])


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
@pytest.mark.parametrize(("prefix", "pooled"), [(1, False), (1, True), (0, True)])
@pytest.mark.parametrize("fusion", ["mean", "max", "min"])
def test_attention_rollout(fusion, prefix, pooled, share):
    attention = some_attention(prefix)
    ours = attention_rollout(attention, prefix, pooled, fusion, share)
    join = {"mean": lambda x: x.mean(0), "max": lambda x: x.max(0).values, "min": lambda x: x.min(0).values}[fusion]
    for i in range(2):
        expected = written_out([join(a[i]) for a in attention], prefix, pooled, share)
        torch.testing.assert_close(ours[i], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("prefix", "pooled"), [(1, False), (0, True)])
def test_gradient_rollout_pairs_each_block_with_its_own_gradient(prefix, pooled):
    attention = some_attention(prefix)
    gradient = [
        1e-3 * torch.randn(a.shape, generator=torch.Generator().manual_seed(3 + i)) for i, a in enumerate(attention)
    ]
    ours = gradient_rollout(attention, gradient, prefix, pooled, 0.2)
    for i in range(2):
        fused = [(a[i] * g[i]).mean(dim=0).clamp(min=0) for a, g in zip(attention, gradient)]
        torch.testing.assert_close(ours[i], written_out(fused, prefix, pooled, 0.2), rtol=1e-3, atol=1e-3)
    swapped = gradient_rollout(attention, gradient[::-1], prefix, pooled, 0.2)
    assert (swapped - ours).abs().max() > 0.05, "small gradients must not drown in the identity"


def test_one_block_alone():
    """Over the mean of the patches, one block's rollout is what its attention pays to each patch."""
    model = classifier(cls_token=False, mean_pooling=True)
    with torch.no_grad(), recomputed_attention(model.backbone) as attention:
        model(images())
    paid = attention[1].mean(dim=1).mean(dim=1)
    ours = attention_map(model, images(), pooled=True, layer=1).flatten(1)
    torch.testing.assert_close(ours, paid / paid.amax(dim=1, keepdim=True), rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match="PICTURE.LAYER is 3"):
        attention_map(model, images(), pooled=True, layer=3)


@pytest.mark.parametrize(("cls_token", "mean_pooling"), [(True, False), (True, True), (False, True), (False, False)])
def test_maps_depend_on_what_the_model_attends_to(cls_token, mean_pooling):
    """The patch whose key all queries look for is the brightest, wherever it lies."""
    model = classifier(cls_token, mean_pooling)
    pooled = reads_patches(model)
    assert pooled == (mean_pooling or not cls_token)
    loud = torch.zeros(1, 3, 32, 32)
    loud[:, :, 16:24, 8:16] = 3.0  # row 2, column 1
    with torch.no_grad():
        for block in model.backbone.blocks:  # values of the key decide, the query is the bias alone
            block.attn.qkv.weight[:32] = 0
            block.attn.qkv.bias[:32] = 1.0
            tokens = block.norm1(model.backbone.embed(loud))
            block.attn.qkv.weight[32:64] = 0.3 * tokens[0, 9].expand(32, -1)
    shown = attention_map(model, loud, pooled)
    assert shown.shape == (1, 4, 4) and shown.flatten().argmax() == 9


def test_gradients_are_those_of_the_class():
    """By finite differences of a class score with respect to single entries of attention."""
    model = classifier(cls_token=True, mean_pooling=False).double()
    x = images(1).double()
    with recomputed_attention(model.backbone) as attention:
        logits = model(x)
        found = torch.autograd.grad(logits[0, 3], attention)
    for block, head, i, j in ((0, 1, 0, 4), (1, 0, 5, 2), (2, 1, 0, 7)):
        scores = []
        for step in (1e-3, -1e-3):
            layer = model.backbone.blocks[block].attn
            given = attention[block].detach().clone()
            given[0, head, i, j] += step
            handle = layer.register_forward_hook(lambda layer, x, out, given=given: layer.apply_weights(given, x[0]))
            scores.append(float(model(x)[0, 3].detach()))
            handle.remove()
        assert float(found[block][0, head, i, j]) == pytest.approx((scores[0] - scores[1]) / 2e-3, rel=1e-3, abs=1e-7)


def test_class_of_a_gradient_map():
    model = classifier(cls_token=False, mean_pooling=True)
    likeliest, logits = gradient_map(model, images(), pooled=True)
    torch.testing.assert_close(logits, model(images()).detach(), rtol=1e-4, atol=1e-5)
    for i, best in enumerate(logits.argmax(dim=1).tolist()):
        alone, _ = gradient_map(model, images()[i : i + 1], pooled=True, category=best)
        torch.testing.assert_close(likeliest[i], alone[0], rtol=1e-3, atol=1e-4)
        other, _ = gradient_map(model, images()[i : i + 1], pooled=True, category=(best + 1) % 5)
        assert (other - alone).abs().max() > 0.01


def test_frozen_and_checkpointed_models_have_gradients_too():
    plain = classifier(cls_token=True, mean_pooling=False)
    expected, _ = gradient_map(plain, images(), pooled=False)
    frozen = classifier(cls_token=True, mean_pooling=False).requires_grad_(False)
    checkpointed = classifier(cls_token=True, mean_pooling=False, act_checkpoint=True)
    for model in (frozen, checkpointed):
        torch.testing.assert_close(gradient_map(model, images(), pooled=False)[0], expected, rtol=1e-4, atol=1e-5)
        assert all(parameter.grad is None for parameter in model.parameters())


def test_nothing_stays_behind():
    model = classifier(cls_token=True, mean_pooling=False)
    before = model(images())
    first = attention_map(model, images(), pooled=False)
    gradient_map(model, images(), pooled=False)
    with pytest.raises(ZeroDivisionError), recomputed_attention(model.backbone):
        raise ZeroDivisionError
    assert not any(block.attn._forward_hooks for block in model.backbone.blocks)
    assert torch.equal(model(images()), before) and torch.equal(attention_map(model, images(), pooled=False), first)
