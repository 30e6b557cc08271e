"""Patches: every number lies where its order says, and comes back."""

from __future__ import annotations

import pytest
import torch

from mfm_core.nn.patchify import patchify, unpatchify


@pytest.mark.parametrize("order", ["hwc", "chw"])
@pytest.mark.parametrize(("size", "patch"), [((6, 8), (3, 2)), ((4, 6, 4), (2, 3, 2)), ((8, 8), 4)])
def test_each_number_lies_where_the_order_says(size, patch, order):
    images = torch.arange(2 * 3 * torch.Size(size).numel()).reshape(2, 3, *size)
    tokens = patchify(images, patch, order)
    sides = (patch,) * len(size) if isinstance(patch, int) else patch
    grid = tuple(n // p for n, p in zip(size, sides))
    assert tokens.shape == (2, torch.Size(grid).numel(), 3 * torch.Size(sides).numel())
    expected = torch.empty_like(tokens)
    for token, place in enumerate(torch.cartesian_prod(*(torch.arange(n) for n in grid)).tolist()):
        window = tuple(slice(i * p, (i + 1) * p) for i, p in zip(place, sides))
        cut = images[(slice(None), slice(None), *window)]
        expected[:, token] = (cut.movedim(1, -1) if order == "hwc" else cut).reshape(2, -1)
    assert torch.equal(tokens, expected)
    assert torch.equal(unpatchify(tokens, grid, patch, 3, order), images)


def test_chw_is_the_order_of_a_pixel_shuffle():
    maps = torch.randn(2, 3 * 16, 5, 7)
    tokens = maps.flatten(2).transpose(1, 2)
    assert torch.equal(unpatchify(tokens, (5, 7), 4, 3, "chw"), torch.nn.functional.pixel_shuffle(maps, 4))


@pytest.mark.parametrize(
    ("size", "patch", "order", "said"),
    [((6, 8), (4, 4), "hwc", "whole number"), ((8, 8), (4,), "hwc", "axes"), ((8, 8), 4, "whc", "order")],
)
def test_what_does_not_fit_is_refused(size, patch, order, said):
    with pytest.raises(ValueError, match=said):
        patchify(torch.zeros(1, 3, *size), patch, order)
