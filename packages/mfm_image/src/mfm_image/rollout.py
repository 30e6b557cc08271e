"""Where a ViT looks: attention multiplied through its blocks, plain or weighted by the gradient of a class.

Attention rollout is Abnar and Zuidema 2020 (arXiv 2005.00928); fusing heads by their maximum or minimum, dropping the
smallest entries and weighting by gradients follow Gildenblat's vit-explain, which MAE-priv took over.

`published=True` gives MAE-priv's numbers. They differ from what is meant in four ways: entry (i, j) of a layer is
divided by the sum of row j instead of row i; of what concerns the class token, only its attention to itself is safe
from being dropped (nothing in the gradient rollout); the gradient is taken before the softmax instead of after it;
and the attention of block i meets the gradient of block depth - 1 - i.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mfm_core.errors import UserError

FUSIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda heads: heads.mean(dim=1),
    "max": lambda heads: heads.amax(dim=1),
    "min": lambda heads: heads.amin(dim=1),
}
"""Names of `PICTURE.HEAD_FUSION`: (B, heads, N, N) to (B, N, N)."""


def attention_rollout(
    attention: Sequence[Tensor],
    prefix: int,
    pooled: bool,
    fusion: str = "mean",
    discard: float = 0.0,
    published: bool = False,
) -> Tensor:
    """How much of each patch reaches the read-out through the blocks whose `attention` (B, heads, N, N) is given.

    prefix: tokens before the patches; pooled: the patches' mean is read out, otherwise the first token. discard: share
    of a block's smallest entries that are dropped; attention paid to prefix tokens never is. Each block's matrix is
    averaged with the identity (the skip connection), its rows sum to one. Returns (B, patches), the largest 1.
    """
    fused = [FUSIONS[fusion](heads) for heads in attention]
    return _relevance(fused, prefix, pooled, discard, published, safe=1)


def gradient_rollout(
    attention: Sequence[Tensor],
    gradient: Sequence[Tensor],
    prefix: int,
    pooled: bool,
    discard: float = 0.0,
    published: bool = False,
) -> Tensor:
    """As `attention_rollout`, of what speaks for a class: attention times the `gradient` of its score with respect to
    the attention, both (B, heads, N, N) from the first block to the last; the mean over heads where it is positive."""
    if published:
        gradient = [before_softmax(a, g) for a, g in zip(attention, gradient)][::-1]
    fused = [(a * g).mean(dim=1).clamp_min(0) for a, g in zip(attention, gradient)]
    return _relevance(fused, prefix, pooled, discard, published, safe=0)


def before_softmax(attention: Tensor, gradient: Tensor) -> Tensor:
    """The gradient with respect to the logits from that with respect to their softmax `attention`."""
    return attention * (gradient - (attention * gradient).sum(dim=-1, keepdim=True))


def attention_map(
    model: nn.Module, images: Tensor, pooled: bool, fusion: str = "mean", discard: float = 0.0, layer: int = -1
) -> Tensor:
    """`attention_rollout` of `model.backbone` for images (B, C, H, W): (B, h, w). layer: -1 for all, or one block."""
    backbone = model.backbone
    with torch.no_grad(), recomputed_attention(backbone) as attention:
        backbone.tokens(images)
    chosen = _of_layer(attention, layer)
    flat = attention_rollout(chosen, backbone.num_prefix_tokens, pooled, fusion, discard)
    return flat.unflatten(1, backbone.grid)


def gradient_map(
    model: nn.Module, images: Tensor, pooled: bool, category: int = -1, discard: float = 0.0, layer: int = -1
) -> tuple[Tensor, Tensor]:
    """`gradient_rollout` of a classifier for images (B, C, H, W): (B, h, w), and its logits (B, classes).

    category: the class; -1 takes the likeliest of each image.
    """
    backbone = model.backbone
    with torch.enable_grad(), recomputed_attention(backbone) as attention:
        logits = model(images)
        classes = logits.argmax(dim=1) if category < 0 else torch.full((len(images),), category, device=logits.device)
        score = logits.gather(1, classes[:, None]).sum()  # images do not meet in a ViT: each gets its own gradient
        gradient = torch.autograd.grad(score, attention)
    attention = [heads.detach() for heads in attention]
    chosen, slopes = _of_layer(attention, layer), _of_layer(gradient, layer)
    flat = gradient_rollout(chosen, slopes, backbone.num_prefix_tokens, pooled, discard)
    return flat.unflatten(1, backbone.grid), logits.detach()


@contextmanager
def recomputed_attention(backbone: nn.Module) -> Iterator[list[Tensor]]:
    """Inside, every block of a ViT computes its attention written out; the list gets it, (B, heads, N, N) float32 each.

    What the blocks give depends on those tensors, so that gradients with respect to them exist, also where all
    parameters are frozen. Outside, and for training, nothing changes.
    """
    found: dict[int, Tensor] = {}
    listed: list[Tensor] = []

    def keep(number: int) -> Callable:
        def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            weights = layer.weights(inputs[0])
            if torch.is_grad_enabled() and not weights.requires_grad:
                weights.requires_grad_()
            if number not in found:  # activation checkpointing comes by again in the backward pass
                found[number] = weights
                listed.append(weights)
            return layer.apply_weights(weights, inputs[0])

        return hook

    handles = [block.attn.register_forward_hook(keep(i)) for i, block in enumerate(backbone.blocks)]
    try:
        yield listed
    finally:
        for handle in handles:
            handle.remove()


def _of_layer(layers: Sequence[Tensor], layer: int) -> Sequence[Tensor]:
    """All, or the one that `PICTURE.LAYER` names."""
    if layer >= len(layers):
        raise UserError(f"PICTURE.LAYER is {layer}, but the model's blocks are 0 to {len(layers) - 1}; -1 takes all.")
    return layers if layer < 0 else [layers[layer]]


def _relevance(
    fused: Sequence[Tensor], prefix: int, pooled: bool, discard: float, published: bool, safe: int
) -> Tensor:
    """Drops, mixes with the identity and multiplies (B, N, N); reads out (B, patches), the largest 1.

    safe: how many entries, from (0, 0) on, the published code spares.
    """
    kept = [_drop_all_but(m, discard, safe) if published else _drop_to_patches(m, discard, prefix) for m in fused]
    product = _product(kept, published)
    rows = product[:, prefix:].mean(dim=1) if pooled else product[:, 0]
    patches = rows[:, prefix:]
    return patches / patches.amax(dim=1, keepdim=True).clamp_min(torch.finfo(patches.dtype).tiny)


def _drop_to_patches(matrix: Tensor, share: float, prefix: int) -> Tensor:
    """Zeroes the smallest `share` of what (B, N, N) pays to patches; prefix tokens keep what is paid to them."""
    paid = _drop_all_but(matrix[:, :, prefix:], share, 0)
    return torch.cat([matrix[:, :, :prefix], paid], dim=2)


def _drop_all_but(matrix: Tensor, share: float, safe: int) -> Tensor:
    """Zeroes the smallest `share` of each matrix's entries, but for those among the first `safe`."""
    flat = matrix.flatten(1)
    count = int(flat.shape[1] * share)
    dropped = torch.zeros_like(flat, dtype=torch.bool)
    dropped.scatter_(1, flat.topk(count, dim=1, largest=False).indices, True)
    dropped[:, :safe] = False
    return flat.masked_fill(dropped, 0.0).view_as(matrix)


def _product(layers: Sequence[Tensor], published: bool) -> Tensor:
    """The layers' (B, N, N), each averaged with the identity and normalised, multiplied from the first to the last.

    The path on which a token attends to nothing but itself is left out. It says nothing of where a model looks, and
    in a mean over the patches it would outweigh gradients, which are small beside the identity.
    """
    eye = torch.eye(layers[0].shape[-1], dtype=layers[0].dtype, device=layers[0].device)
    product, alone = eye.expand_as(layers[0]), torch.ones_like(layers[0][:, 0])
    for layer in layers:
        mixed = (layer + eye) / 2
        sums = mixed.sum(dim=2)
        product = mixed / (sums[:, None, :] if published else sums[:, :, None]) @ product
        alone = alone * 0.5 / sums
    return product - torch.diag_embed(alone)
