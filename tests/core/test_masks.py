"""Masks that hide the same number of tokens in every image: random ones, and blocks that are topped up."""

from __future__ import annotations

import pytest
import torch

from mfm_core.errors import UserError
from mfm_core.masking.block import BlockMask
from mfm_core.masking.random import RandomMask, hidden_tokens, mask_of_noise

GRID = (14, 14)


def draw(masker, count=400, seed=0):
    """(count, L) bool."""
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([masker(generator, torch.zeros(3, 1, 1)) for _ in range(count)]).flatten(1)


@pytest.mark.parametrize("hidden", [1, 77, 147, 195])
@pytest.mark.parametrize("kind", ["random", "block"])
def test_every_image_hides_the_same_number(kind, hidden):
    masker = RandomMask(GRID, hidden) if kind == "random" else BlockMask(GRID, 0.5, exact=hidden)
    masks = draw(masker)
    assert masks.dtype == torch.bool and (masks.sum(dim=1) == hidden).all()
    assert torch.equal(masks, draw(masker)) and not torch.equal(masks, draw(masker, seed=1))


def test_random_masks_hide_all_tokens_alike():
    count, ratio = 4000, 0.75
    masks = draw(RandomMask(GRID, 147), count).float()
    deviation = (ratio * (1 - ratio) / count) ** 0.5
    assert (masks.mean(dim=0) - ratio).abs().max() < 5 * deviation
    pairs = (masks[:, :-1] * masks[:, 1:]).mean()
    assert float(pairs) == pytest.approx(147 / 196 * 146 / 195, abs=0.002)


def test_noise_is_sorted_as_mae_does():
    noise = torch.tensor([[0.3, 0.1, 0.9, 0.5], [0.8, 0.7, 0.6, 0.2]])
    assert mask_of_noise(noise, 1).tolist() == [[False, False, True, False], [True, False, False, False]]
    assert mask_of_noise(noise, 3).tolist() == [[True, False, True, True], [True, True, True, False]]


def test_topped_up_blocks_are_the_same_blocks():
    """The blocks are drawn first and stay; only what they miss is hidden singly."""
    exact, plain = BlockMask(GRID, 0.4, exact=78), BlockMask(GRID, 0.4)
    assert plain.requested == 78
    topped_up = 0
    for seed in range(200):
        whole = exact(torch.Generator().manual_seed(seed))
        blocks = plain(torch.Generator().manual_seed(seed))
        assert not (blocks & ~whole).any()
        topped_up += int(blocks.sum()) < 78
    assert topped_up > 20  # or nothing was tested


def test_topped_up_blocks_still_lie_in_blocks():
    def neighbours(masks):
        """The share of hidden tokens whose right neighbour is hidden."""
        maps = masks.unflatten(1, GRID)
        return float((maps[:, :, :-1] & maps[:, :, 1:]).sum() / maps[:, :, :-1].sum())

    assert neighbours(draw(BlockMask(GRID, 0.4, exact=78))) > neighbours(draw(RandomMask(GRID, 78))) + 0.25


@pytest.mark.parametrize("rounded", ["visible", "hidden"])
@pytest.mark.parametrize(("tokens", "ratio"), [(196, 0.001), (4, 0.1), (4, 0.99999), (1, 0.5)])
def test_masks_that_leave_nothing(tokens, ratio, rounded):
    plain = tokens - int(tokens * (1 - ratio)) if rounded == "visible" else int(ratio * tokens)
    if 0 < plain < tokens:
        assert hidden_tokens(tokens, ratio, rounded) == plain
    else:
        with pytest.raises(UserError, match="AUG.MASK_RATIO"):
            hidden_tokens(tokens, ratio, rounded)
