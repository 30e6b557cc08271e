"""mmpretrain's block masks of images: statistics of many masks that hide exactly the number asked for."""

from __future__ import annotations

import pytest
import torch
from golden_cases import cases, load_case

from mfm_core.masking.block import BlockMask, ExactBlockMask


class TooEarly(ExactBlockMask):
    """Begins blocks where mmpretrain does: one place too early at most, so that the last row and column stay free."""

    def _rectangle(self, most, u):
        shape = super()._rectangle(most, [u[0], u[1], 0.0, 0.0])
        if shape is None:
            return None
        sides = [side.stop for side in shape]
        starts = [int(x * (length - side)) for x, length, side in zip(u[2:], self.grid, sides)]
        return tuple(slice(start, start + side) for start, side in zip(starts, sides))


def draw(masker, count, seed=0):
    """(count, *grid) bool."""
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([masker(generator) for _ in range(count)])


def found():
    return pytest.mark.parametrize("folder", cases("mmpretrain/mask_stats"), ids=lambda p: p.name)


def masker_of(case, kind):
    """The generator of a case, as a mask of ours, whose least area is a fifth of all if it is not told."""
    arguments = case["config"]["gen_2d"]
    grid, number = (arguments["input_size"],) * 2, arguments["num_masking_patches"]
    masker = kind(grid, number / torch.Size(grid).numel(), arguments.get("max_num_patches"))
    assert masker.exact == number
    masker.min_block = arguments["min_num_patches"]
    return masker


@found()
def test_with_their_bounds_masks_are_theirs(folder):
    """Counts, how often each place is hidden, and with its right neighbour: shapes and when drawing ends are alike."""
    case, io = load_case(folder)
    masks, atol = draw(masker_of(case, TooEarly), case["config"]["n"]), case["tolerance"]["atol"]
    assert (masks.flatten(1).sum(dim=1) == io["out_count_2d"]).all()
    # the largest of some hundred differences between two estimates is a third larger than a single one's tolerance
    torch.testing.assert_close(masks.double().mean(dim=0), io["out_freq_2d"].double(), atol=atol * 4 / 3, rtol=0)
    pairs = (masks[..., :-1] & masks[..., 1:]).float().mean()
    assert float(pairs) == pytest.approx(float(io["out_pair_right_2d"]), abs=atol / 5)
    assert not masks[:, -1].any() and not masks[:, :, -1].any()


@found()
def test_ours_reach_the_last_row_and_column(folder):
    case, io = load_case(folder)
    masks = draw(masker_of(case, ExactBlockMask), case["config"]["n"])
    assert (masks.flatten(1).sum(dim=1) == io["out_count_2d"]).all()
    often, atol = masks.double().mean(dim=0), case["tolerance"]["atol"]
    for mirrored in (often.flip(0), often.flip(1), often.T):
        torch.testing.assert_close(mirrored, often, atol=atol * 4 / 3, rtol=0)
    assert float(often.min()) > 0.02 and float(often.max()) < float(io["out_freq_2d"].max())


@found()
def test_block_areas(folder):
    """Of the first block: even between the least and all that is asked for, but for those too long for the grid."""
    case, _ = load_case(folder)
    masker, generator = masker_of(case, ExactBlockMask), torch.Generator().manual_seed(0)
    drawn = [masker._draw(masker.exact, generator) for _ in range(4000)]
    sides = torch.tensor([[side.stop - side.start for side in block] for block in drawn if block is not None])
    areas, aspects = sides.prod(dim=1), sides[:, 0] / sides[:, 1]
    assert areas.min() >= masker.min_block - 3 and areas.max() <= masker.exact + 6, "but for the rounding of sides"
    assert float(areas.float().mean()) == pytest.approx((masker.min_block + masker.exact) / 2, rel=0.1)
    assert float(aspects.log().mean()) == pytest.approx(0.0, abs=0.05)
    assert 0.2 < float(aspects.min()) < 0.4 and 1 / 0.4 < float(aspects.max()) < 1 / 0.2


class ByBlocksAlone(ExactBlockMask):
    """Fails where tokens would be hidden singly."""

    def _top_up(self, mask, missing, generator):
        assert missing == 0


def test_blocks_go_on():
    """As long as BlockMask finds room, masks are its own; what it misses is added by blocks, not singly."""
    missed = 0
    for seed in range(200):
        blocks = BlockMask((14, 14), 0.4)(torch.Generator().manual_seed(seed))
        exact = ByBlocksAlone((14, 14), 0.4)(torch.Generator().manual_seed(seed))
        assert int(exact.sum()) == 78 and not (blocks & ~exact).any()
        missed += not torch.equal(blocks, exact)
    assert 30 < missed < 90


@pytest.mark.parametrize("grid", [(2, 2), (3, 5), (8, 8)])
@pytest.mark.parametrize("ratio", [0.3, 0.6, 0.9])
def test_small_grids(grid, ratio):
    masks = draw(ByBlocksAlone(grid, ratio), 50).flatten(1)
    assert (masks.sum(dim=1) == round(ratio * masks.shape[1])).all()


def test_a_largest_block():
    masks = draw(ExactBlockMask((14, 14), 0.4, max_block=5), 50)
    assert (masks.flatten(1).sum(dim=1) == 78).all()
