"""Cubes, tubes and frames beside those that PySlowFast and mmpretrain draw: statistics of many masks."""

from __future__ import annotations

import json

import pytest
import torch
from golden_cases import cases, load_case
from paths import CONFIGS

from mfm_core.config import load_config
from mfm_core.errors import UserError
from mfm_core.masking.block import BlockMask
from mfm_core.masking.cube import CubeMask
from mfm_core.masking.enlarged import Enlarged
from mfm_core.masking.random import RandomMask
from mfm_core.methods import clip_masks  # noqa: F401  importing them registers them
from mfm_core.methods.parts import masks_from_cfg


def draw(masker, count, seed=0):
    """(count, *grid) bool."""
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([masker(generator) for _ in range(count)])


def entries():
    for folder in cases("pyslowfast/masks"):
        tolerance = json.loads((folder / "case.json").read_text())["tolerance"]
        for name, entry in json.loads((folder / "data.json").read_text()).items():
            if not entry["kind"].startswith("2d"):
                yield pytest.param(entry, tolerance, id=f"{folder.name}-{name}")


def masker_of(entry):
    """What draws the masks of an entry, in the window's size."""
    window, ratio, requested = tuple(entry["window"]), entry["ratio"], entry["requested"]
    if entry["kind"].startswith("3d"):
        masker = CubeMask(window, ratio)
        assert (masker.min_block, masker.max_block) == (entry["min_block_area"], entry["max_block_area"])
        assert (masker.requested, masker.attempts) == (requested, entry["attempts_per_block"])
        return masker
    if entry["kind"].startswith("tube"):
        masker = BlockMask(window, ratio)
        assert (masker.requested, masker.min_block) == (requested, entry["min_block"])
        return Enlarged(masker, (1, *window), tuple(entry["shape"]))
    return Enlarged(RandomMask((window[0], 1, 1), round(ratio * window[0])), (window[0], 1, 1), window)


@pytest.mark.parametrize(("entry", "tolerance"), entries())
def test_pyslowfast(entry, tolerance):
    masks = draw(masker_of(entry), 4000)
    flat = masks.flatten(1).float()
    # both means are estimates; ours is over 4000 draws
    ours, theirs = float(flat.mean(dim=1).std()) / 4000**0.5, entry["standard_error_of_mean_fraction"]
    error = (ours**2 + theirs**2) ** 0.5
    assert float(flat.mean()) == pytest.approx(entry["masked_fraction"]["mean"], abs=4 * error + 1e-7)
    count = flat.sum(dim=1) if not entry.get("identical_frames") else flat.sum(dim=1) / masks.shape[1]
    assert count.max() <= max(int(n) for n in entry["count_histogram"])
    reached = (count == max(int(n) for n in entry["count_histogram"])).float().mean()
    assert float(reached) == pytest.approx(entry["masked_count"]["fraction_of_draws_reaching_requested"], abs=0.04)
    expected = torch.tensor(entry["probability_map"])
    found = masks.float().mean(dim=0)
    atol = float(tolerance["probability_map"].removeprefix("abs "))
    for frame in found if expected.dim() < found.dim() else [found]:
        torch.testing.assert_close(frame, expected, atol=atol, rtol=0)
    if "mean_temporal_run_length_of_masked_positions" in entry:
        close = pytest.approx(entry["mean_temporal_run_length_of_masked_positions"], rel=0.03)
        assert run_length(masks) == close


def run_length(masks):
    """How many time steps in a row a place is hidden, on average."""
    starts = masks.clone()
    starts[:, 1:] &= ~masks[:, :-1]
    return float(masks.sum() / starts.sum())


@pytest.mark.parametrize(("entry", "_"), entries())
def test_structure(entry, _):
    masks = draw(masker_of(entry), 50)
    same_in_time = bool((masks == masks[:, :1]).all())
    same_in_space = bool((masks == masks[:, :, :1, :1]).all())
    kind = entry["kind"].split()[0]
    assert (same_in_time, same_in_space) == {"3d": (False, False), "tube": (True, False), "whole": (False, True)}[kind]


@pytest.mark.parametrize("folder", cases("mmpretrain/mask_stats"), ids=lambda p: p.name)
def test_mmpretrain(folder):
    case, io = load_case(folder)
    arguments, atol = case["config"]["gen_3d"], case["tolerance"]["atol"]
    window = tuple(arguments["input_size"])
    masker = CubeMask(window, arguments["num_masking_patches"] / torch.Size(window).numel())
    assert (masker.requested, masker.min_block) == (arguments["num_masking_patches"], arguments["min_num_patches"])
    assert masker.max_block == arguments["max_num_patches"]
    masks = draw(masker, case["config"]["n"])
    counts, theirs = masks.flatten(1).sum(dim=1), io["out_count_3d"]
    # the largest of several hundred differences between two estimates is a third larger than a single one's tolerance
    torch.testing.assert_close(masks.double().mean(dim=0), io["out_freq_3d"].double(), atol=atol * 4 / 3, rtol=0)
    assert counts.max() <= arguments["num_masking_patches"]
    assert float(counts.float().mean()) == pytest.approx(float(theirs.float().mean()), abs=0.2)
    pairs = masks[:, :-1] & masks[:, 1:], masks[..., :-1] & masks[..., 1:]
    for found, name in zip(pairs, ("time", "right")):
        assert float(found.float().mean()) == pytest.approx(float(io[f"out_pair_{name}_3d"]), abs=atol)


class TestEnlarged:
    def test_places_are_repeated(self):
        """A place of the window becomes a box of the grid, not every n-th token."""

        def masker(generator, image=None):
            return torch.tensor([[[True, False], [False, False]], [[False, False], [False, True]]])

        mask = Enlarged(masker, (2, 2, 2), (4, 2, 6))(torch.Generator())
        assert mask.shape == (4, 2, 6)
        expected = torch.zeros(4, 2, 6, dtype=torch.bool)
        expected[:2, 0, :3] = True
        expected[2:, 1, 3:] = True
        assert torch.equal(mask, expected)

    def test_as_nearest_interpolation(self):
        masker = CubeMask((4, 7, 7), 0.4)
        mask = Enlarged(masker, (4, 7, 7), (8, 14, 14))(torch.Generator().manual_seed(3))
        small = masker(torch.Generator().manual_seed(3))
        enlarged = torch.nn.functional.interpolate(small[None, None].float(), size=(8, 14, 14), mode="nearest")
        assert torch.equal(mask, enlarged[0, 0].bool())

    @pytest.mark.parametrize("grid", [(8, 10, 14), (6, 14, 14), (4, 14, 14)])
    def test_a_window_that_does_not_divide(self, grid):
        with pytest.raises(UserError, match=r"AUG.MASK_WINDOW_SIZE \[8, 7, 7\] must divide the token grid") as caught:
            Enlarged(CubeMask((8, 7, 7), 0.4), (8, 7, 7), grid)
        assert "\n" not in str(caught.value)


RECIPE = str(CONFIGS / "masked_ssl" / "k400_MVITv2_S_16x4_MaskFeat_PT.yaml")


class TestRecipe:
    """What the MaskFeat recipe draws is what was held against the golden statistics, enlarged to 8 x 14 x 14."""

    @staticmethod
    def masks(*overrides, count=40):
        return draw(masks_from_cfg(load_config(RECIPE, overrides), (8, 14, 14)), count)

    def test_cubes(self):
        assert torch.equal(self.masks(), draw(Enlarged(CubeMask((8, 7, 7), 0.4), (8, 7, 7), (8, 14, 14)), 40))

    def test_small_cubes(self):
        """As many places are hidden; beside a hidden one is another less often, in time as often as in large cubes."""
        small = self.masks("AUG.MAX_MASK_PATCHES_PER_BLOCK", "4", count=100)[:, :, ::2, ::2]
        large = self.masks(count=100)[:, :, ::2, ::2]
        assert float(small.float().mean()) == pytest.approx(float(large.float().mean()), abs=0.03)
        beside, usually_beside = ((m[..., :-1] & m[..., 1:]).float().mean() for m in (small, large))
        later, usually_later = ((m[:, :-1] & m[:, 1:]).float().mean() for m in (small, large))
        assert beside < 0.8 * usually_beside and later > 0.8 * usually_later

    @pytest.mark.parametrize("window", ["[7, 7]", "[8, 7, 7]", "[3, 7, 7]"])
    def test_tubes(self, window):
        found = self.masks("AUG.MASK_TUBE", "True", "AUG.MASK_WINDOW_SIZE", window)
        flat = draw(BlockMask((7, 7), 0.4), 40).repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)
        assert torch.equal(found, flat[:, None].expand(-1, 8, -1, -1))

    def test_tubes_of_small_blocks(self):
        largest = draw(BlockMask((7, 7), 0.4, max_block=5), 40).sum(dim=(1, 2))
        found = self.masks("AUG.MASK_TUBE", "True", "AUG.MAX_MASK_PATCHES_PER_BLOCK", "5")
        assert torch.equal(found[:, 0, ::2, ::2].sum(dim=(1, 2)), largest)

    @pytest.mark.parametrize(("window", "hidden"), [("[8, 7, 7]", 3), ("[4, 7, 7]", 4)])
    def test_frames(self, window, hidden):
        found = self.masks("AUG.MASK_FRAMES", "True", "AUG.MASK_WINDOW_SIZE", window)
        assert (found.all(dim=(2, 3)).sum(dim=1) == hidden).all() and (found.any(dim=(2, 3)).sum(dim=1) == hidden).all()

    def test_a_share_of_no_frame(self):
        with pytest.raises(UserError, match="AUG.MASK_RATIO 0.05 hides 0 of AUG.MASK_WINDOW_SIZE's 8 time steps"):
            self.masks("AUG.MASK_FRAMES", "True", "AUG.MASK_RATIO", "0.05")


def test_exact_cubes():
    """Masked autoencoders hide the same number in every clip; the cubes stay, the rest is hidden singly."""
    masks = draw(CubeMask((8, 7, 7), 0.4, exact=157), 200)
    assert (masks.flatten(1).sum(dim=1) == 157).all()
    for seed in range(20):
        whole = CubeMask((8, 7, 7), 0.4, exact=157)(torch.Generator().manual_seed(seed))
        cubes = CubeMask((8, 7, 7), 0.4)(torch.Generator().manual_seed(seed))
        assert not (cubes & ~whole).any()


@pytest.mark.parametrize(("window", "ratio"), [((4, 8, 8), 0.04), ((8, 7, 7), 0.02), ((8, 14, 14), 0.02)])
def test_a_ratio_that_no_cube_fits_into(window, ratio):
    """Most masks would be empty, and the loss of a batch of such the mean of nothing; exact counts are met singly."""
    with pytest.raises(UserError, match=f"AUG.MASK_RATIO {ratio} hides nothing in most clips.*PATCHES_PER_BLOCK"):
        CubeMask(window, ratio)
    smaller, exact = CubeMask(window, ratio, max_block=5), CubeMask(window, ratio, exact=3)
    assert draw(smaller, 40).flatten(1).any(dim=1).float().mean() > 0.5
    assert (draw(exact, 40).flatten(1).sum(dim=1) == 3).all()
    assert draw(CubeMask(window, 0.08), 40).flatten(1).any(dim=1).all()


def test_a_window_of_one_place():
    """What is too small is the window, not the ratio, nor the images."""
    for masks in (["AUG.MASK_TYPE", "cube"], ["AUG.MASK_TUBE", "True"]):
        cfg = load_config(RECIPE, [*masks, "AUG.MASK_WINDOW_SIZE", "[1, 1, 1]"])
        with pytest.raises(UserError, match="no token to hide; raise AUG.MASK_WINDOW_SIZE") as caught:
            masks_from_cfg(cfg, (8, 14, 14))
        assert "PATCH_STRIDE" not in str(caught.value) and "the ratio" not in str(caught.value)


def test_windows_without_room():
    with pytest.raises(UserError, match="AUG.MASK_RATIO 0.001 of a 8 x 7 x 7 grid"):
        CubeMask((8, 7, 7), 0.001)
