"""The HOG target: the published numbers, the plain formulation, its shapes and orders, its memory, its kernel."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from golden_cases import cases, load_case
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mfm_core.errors import UserError
from mfm_core.targets import hog as hog_module
from mfm_core.targets.hog import HOGTarget, gaussian_weights, group, hog, ungroup

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
has_kernel = pytest.mark.skipif(not INTERPRETED, reason="runs in the process test_fused_kernel starts")


def plain_hog(images, bins=9, cell=8, gaussian_window=0):
    """HOG written out: filter, bin volume at full resolution, pooling."""
    channels = images.shape[1]
    sobel = torch.tensor([[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]])
    padded = F.pad(images.float(), (1, 1, 1, 1), mode="reflect")
    gx = F.conv2d(padded, sobel.expand(channels, 1, 3, 3), groups=channels)
    gy = F.conv2d(padded, sobel.T.expand(channels, 1, 3, 3), groups=channels)
    magnitude = torch.stack([gx, gy]).norm(dim=0)
    if gaussian_window:
        tiles = [side // gaussian_window for side in images.shape[-2:]]
        magnitude = magnitude * gaussian_weights(gaussian_window, images.device).repeat(tiles)
    orientation = (torch.atan2(gx, gy) / math.pi * bins).floor().long() % bins
    volume = torch.stack([torch.where(orientation == k, magnitude, 0.0) for k in range(bins)], dim=2)
    return F.normalize(F.avg_pool2d(volume.flatten(0, 2)[None], cell)[0].view(*volume.shape[:3], *[
        side // cell for side in images.shape[-2:]
    ]), dim=2)  # fmt: skip


def exact_images(*shape, step=32, seed=0):
    """Noise on multiples of 1 / step: its gradients are exact in float32, and many are exactly zero."""
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return (noise * step / 4).round() / step


def noise_images(*shape, seed=0):
    """Noise of a fixed seed: of a million pixels a few lie so near a bin's bound that rounding decides."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# ---- golden cases ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", cases("pyslowfast/hog"), ids=lambda f: f.name)
def test_golden_operation(folder):
    case, io = load_case(folder)
    tolerance = case["tolerance"]
    for name, variant in case["config"]["variants"].items():
        if "gaussian_window" not in variant:
            continue
        got = hog(io[variant["input"]], variant["bins"], variant["cell"], variant["gaussian_window"])
        want = io[f"out_{name}"]
        assert list(got.shape) == variant["out_shape"] and got.dtype == torch.float32
        rtol, atol = tolerance["rtol"], tolerance["atol"]
        if stable := variant.get("strict_only_where"):
            got, want = (x.movedim(2, -1)[io[stable]] for x in (got, want))
            atol = tolerance["atol_photo_stable_cells"]
        torch.testing.assert_close(got, want, rtol=rtol, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("folder", cases("pyslowfast/hog"), ids=lambda f: f.name)
def test_golden_targets_of_images_and_clips(folder):
    case, io = load_case(folder)
    config = case["config"]
    tolerance = {key: case["tolerance"][key] for key in ("rtol", "atol")}
    for name, variant in config["variants"].items():
        if "dim" not in variant:
            continue
        patch = variant.get("patch", variant.get("feature_stride"))
        target = HOGTarget(
            (patch, patch), variant.get("bins", config["bins"]), variant["cell"],
            temporal_stride=variant.get("temporal_stride", 1),
        )  # fmt: skip
        got = target(io[variant["input"]])
        assert target.dim == variant["dim"]
        torch.testing.assert_close(got, io[f"out_{name}"], **tolerance)
        mask = io[f"in_{name.replace('grouped', 'mask')}"]
        torch.testing.assert_close(got[mask], io[f"out_{name}_masked"], **tolerance)


@pytest.mark.parametrize("folder", cases("pyslowfast/hog"), ids=lambda f: f.name)
def test_golden_window_and_flat_images(folder):
    case, io = load_case(folder)
    for key in io:
        if key.startswith("gauss"):
            torch.testing.assert_close(gaussian_weights(io[key].shape[0], torch.device("cpu")), io[key])
    config = case["config"]
    flat = config["constant_images"]
    values = torch.tensor(flat["pixel_values"])[:, None] / 255
    colours = (values - torch.tensor(config["photo_mean"])) / torch.tensor(config["photo_std"])
    got = hog(colours[:, :, None, None].expand(-1, -1, 32, 32))
    assert ((got != 0).flatten(2).any(2)).tolist() == flat["channel_has_nonzero_output"]
    assert set(got.unique().tolist()) <= {0.0, 1.0} and not got[:, :, 1:].any()


def test_photo_cells_that_rounding_decides_are_the_recorded_ones_too():
    """The Sobel sums run in the recorded order, so even the unstable cells agree (README of the golden cases)."""
    case, io = load_case(Path(__file__).parents[1] / "golden" / "pyslowfast" / "hog")
    for name in ("photo_pool8", "photo_pool4"):
        got = hog(io["in_photo"], cell=case["config"]["variants"][name]["cell"])
        torch.testing.assert_close(got, io[f"out_{name}"], rtol=0, atol=1e-5)


def normalised(pixels, preprocessor):
    """(B, 3, ...) uint8 to float32, by mean and std on the 0-255 scale."""
    shape = (1, 3) + (1,) * (pixels.ndim - 2)
    mean, std = (torch.tensor(preprocessor[key]).view(shape) for key in ("mean", "std"))
    return (pixels.float() - mean) / std


@pytest.mark.parametrize("kind", ["maskfeat_image", "maskfeat_video"])
def test_golden_mmpretrain(kind):
    """mmpretrain's token grid is 14 x 14, whatever the size; its HOG is PySlowFast's."""
    for folder in cases(f"mmpretrain/{kind}"):
        case, io = load_case(folder)
        model = case["config"]["model"]
        generator = model["target_generator"]
        pixels = io["in_image_rgb_u8" if kind == "maskfeat_image" else "in_video_rgb_u8"]
        patch = pixels.shape[-1] // 14
        target = HOGTarget(
            (patch, patch), generator["nbins"], generator["pool"], generator["gaussian_window"], temporal_stride=2
        )
        got = target(normalised(pixels, model["data_preprocessor"]))
        stable = io["out_hog_stable"]
        torch.testing.assert_close(got[stable], io["out_hog"][stable], rtol=1e-4, atol=2e-4)
        if "in_float_image" in io:
            settings, image = case["config"]["float_hog"], io["in_float_image"]
            sides = (image.shape[-2] // 14, image.shape[-1] // 14)
            stable = io["out_float_hog_stable"]
            for window, name in ((settings["gaussian_window"], "out_float_hog"), (0, "out_float_hog_nowindow")):
                got = HOGTarget(sides, settings["nbins"], settings["pool"], window)(image)
                torch.testing.assert_close(got[stable], io[name][stable], rtol=1e-4, atol=1e-5)


# ---- the plain formulation ---------------------------------------------------------------------------------------

SIZES = [
    # (n, c, h, w), bins, cell, window
    ((2, 3, 64, 96), 9, 8, 0),
    ((3, 1, 32, 16), 9, 4, 16),
    ((1, 3, 42, 28), 9, 7, 14),
    ((2, 4, 20, 12), 6, 2, 4),
    ((1, 2, 5, 9), 5, 1, 0),
    ((1, 1, 64, 64), 18, 16, 32),
    ((40, 3, 32, 32), 9, 8, 0),
]


@pytest.mark.parametrize("shape, bins, cell, window", SIZES)
@pytest.mark.parametrize("images", [exact_images, noise_images], ids=["ties", "noise"])
def test_equals_the_plain_formulation(images, shape, bins, cell, window):
    x = images(*shape)
    torch.testing.assert_close(hog(x, bins, cell, window), plain_hog(x, bins, cell, window), rtol=1e-5, atol=1e-6)


def test_chunks_do_not_show(monkeypatch):
    x = exact_images(5, 3, 32, 32)
    whole = hog(x)
    for pixels in (1, 2500, 7000):
        monkeypatch.setattr(hog_module, "CHUNK", pixels)
        assert torch.equal(hog(x), whole)


def test_threads_do_not_show_and_leave_the_settings_alone(monkeypatch):
    monkeypatch.setattr(hog_module, "SERIAL", 0)
    x = exact_images(5, 3, 32, 32)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        want = hog(x)
        for threads in (2, 3, 40):
            torch.set_num_threads(threads)
            assert torch.equal(hog(x), want)
            assert torch.get_num_threads() == threads
        assert not hog(x.requires_grad_()).requires_grad
    finally:
        torch.set_num_threads(before)


def test_other_types_and_strides_are_computed_in_float32():
    x = exact_images(2, 3, 32, 48)
    want = hog(x)
    assert torch.equal(hog(x.transpose(2, 3).contiguous().transpose(2, 3)), want)
    assert torch.equal(hog(x.to(memory_format=torch.channels_last)), want)
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        assert torch.equal(hog(x.to(dtype)), hog(x.to(dtype).float()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(hog(x), want)
    grad = x.clone().requires_grad_()
    assert not hog(grad).requires_grad and not HOGTarget((16, 16))(grad).requires_grad


def test_nan_stays_in_its_cells():
    x = exact_images(1, 1, 32, 32)
    x[0, 0, 4, 4] = math.nan
    bad = hog(x).isnan()
    assert bad[0, 0, :, 0, 0].all() and bad.sum() == 9


# ---- grouping ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("patch, cell", [((16, 16), 8), ((8, 8), 4), ((8, 8), 8), ((16, 8), 4)])
def test_tokens_are_row_major_and_ordered_colour_bin_row_column(patch, cell):
    x = exact_images(2, 3, 32, 48)
    target = HOGTarget(patch, cell=cell)
    tokens = target(x)
    cells = hog(x, cell=cell)
    h, w = 32 // patch[0], 48 // patch[1]
    per_y, per_x = target.per_token
    assert tokens.shape == (2, h * w, target.dim)
    for row, column in ((0, 0), (h - 1, 1)):
        block = cells[:, :, :, row * per_y : (row + 1) * per_y, column * per_x : (column + 1) * per_x]
        assert torch.equal(tokens[:, row * w + column], block.flatten(1))
    assert torch.equal(ungroup(tokens, (h, w), patch, cell), cells)


def test_clips_use_every_stride_th_frame_from_the_first():
    clips = exact_images(2, 3, 5, 32, 32)
    target = HOGTarget((16, 16), temporal_stride=2)
    tokens = target(clips)
    frames = [HOGTarget((16, 16))(clips[:, :, t]) for t in (0, 2, 4)]
    assert torch.equal(tokens, torch.cat(frames, dim=1))
    cells = ungroup(tokens, (3, 2, 2), (16, 16))
    assert cells.shape == (2, 3, 3, 9, 4, 4)
    assert torch.equal(cells[:, 1], hog(clips[:, :, 2]))
    assert torch.equal(group(cells, (2, 2)), tokens)


def test_shapes_on_the_meta_device():
    images = torch.empty(2, 3, 64, 96, device="meta")
    assert hog(images).shape == (2, 3, 9, 8, 12) and hog(images.bfloat16()).dtype == torch.float32
    assert HOGTarget((16, 16))(images).shape == (2, 24, 108)
    clips = torch.empty(2, 3, 8, 64, 64, device="meta")
    tokens = HOGTarget((16, 16), temporal_stride=2)(clips)
    assert tokens.shape == (2, 64, 108) and tokens.is_meta
    assert hog(torch.empty(0, 3, 64, 64)).shape == (0, 3, 9, 8, 8)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: hog(torch.zeros(1, 3, 30, 32)), "30x32.*cell"),
        (lambda: hog(torch.zeros(1, 3, 32, 24), gaussian_window=16), "32x24.*gaussian_window"),
        (lambda: hog(torch.zeros(3, 32, 32)), "3, 32, 32"),
        (lambda: hog(torch.zeros(1, 3, 1, 32), cell=1), "2x2"),
        (lambda: hog(torch.zeros(1, 3, 32, 32), bins=1), "bins"),
        (lambda: HOGTarget((12, 16)), "12x16.*cell"),
        (lambda: HOGTarget((4, 4)), "4x4.*cell"),
        (lambda: HOGTarget((16, 16), temporal_stride=0), "temporal_stride"),
        (lambda: HOGTarget((16, 16))(torch.zeros(1, 3, 24, 32)), "24x32.*patch"),
        (lambda: HOGTarget((16, 16))(torch.zeros(1, 1, 32, 32)), "1, 1, 32, 32"),
        (lambda: ungroup(torch.zeros(1, 5, 108), (2, 2), (16, 16)), "1, 5, 108"),
    ],
)
def test_wrong_sizes_are_named(call, words):
    with pytest.raises(UserError, match=words):
        call()


# ---- memory ------------------------------------------------------------------------------------------------------


class LargestTensor(TorchDispatchMode):
    """Records the largest storage that any operation returns, in bytes."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.bytes = max(self.bytes, leaf.untyped_storage().nbytes())
        return result


@pytest.mark.parametrize("shape, cell", [((8, 3, 224, 224), 8), ((1, 1, 64, 64), 4), ((16, 3, 48, 48), 3)])
def test_no_buffer_is_larger_than_four_times_the_input(shape, cell):
    x = noise_images(*shape)
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # the mode sees the operations of this thread only; on one thread buffers are largest
    try:
        with LargestTensor() as largest:
            hog(x, cell=cell)
    finally:
        torch.set_num_threads(before)
    assert 0 < largest.bytes <= 4 * x.numel() * x.element_size()


def test_without_triton_gpu_tensors_take_the_cpu_formulation(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "mfm_core.targets.hog_triton", raising=False)
    hog_module.fused_kernel.cache_clear()
    assert hog_module.fused_kernel() is None
    hog_module.fused_kernel.cache_clear()


# ---- the Triton kernel, in Triton's interpreter --------------------------------------------------------------------


def test_fused_kernel():
    """Runs the tests below in a process of their own: Triton reads TRITON_INTERPRET when it is imported."""
    pytest.importorskip("triton")
    if INTERPRETED:
        pytest.skip("this is that process")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", __file__, "-k", "interpreted"],
        env=environment, capture_output=True, text=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    assert "skipped" not in run.stdout


@has_kernel
@pytest.mark.parametrize("shape, bins, cell, window", SIZES[:6])
def test_interpreted_kernel_equals_the_cpu_formulation(shape, bins, cell, window):
    from mfm_core.targets.hog_triton import hog_tokens

    for x in (exact_images(*shape), noise_images(*shape)):
        want = hog(x, bins, cell, window)
        got = hog_tokens(x.unsqueeze(2), bins, cell, window, want.shape[-2:]).view(want.shape)
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


@has_kernel
@pytest.mark.parametrize("folder", cases("pyslowfast/hog"), ids=lambda f: f.name)
def test_interpreted_kernel_golden(folder, monkeypatch):
    from mfm_core.targets import hog_triton

    monkeypatch.setattr(hog_triton, "BLOCK", 1024)  # the interpreter's time goes by programs, not by their size
    case, io = load_case(folder)
    for name, variant in case["config"]["variants"].items():
        if "gaussian_window" in variant and "strict_only_where" not in variant:
            check_golden_kernel(io[variant["input"]], variant, io[f"out_{name}"], case["tolerance"])


@has_kernel
def test_interpreted_kernel_puts_8_bit_gradients_into_the_same_bins(monkeypatch):
    from mfm_core.targets import hog_triton

    monkeypatch.setattr(hog_triton, "BLOCK", 1 << 16)
    x = torch.randint(0, 256, (1, 1, 256, 256), generator=torch.Generator().manual_seed(0)).float()
    x[..., 128:, :] = x[..., 128:, :] // 64  # many exact zeros and diagonals
    got = hog_triton.hog_tokens(x.unsqueeze(2), 9, 1, 0, (256, 256)).view(1, 1, 9, 256, 256)
    assert torch.equal(got.round(), hog(x, cell=1).round())


def check_golden_kernel(images, variant, want, tolerance):
    from mfm_core.targets.hog_triton import hog_tokens

    cells = want.shape[-2:]
    got = hog_tokens(images.unsqueeze(2), variant["bins"], variant["cell"], variant["gaussian_window"], cells)
    torch.testing.assert_close(got.view(want.shape), want, rtol=tolerance["rtol"], atol=tolerance["atol"])


@has_kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_interpreted_kernel_writes_tokens_of_strided_clips(dtype):
    from mfm_core.targets.hog_triton import hog_tokens

    clips = exact_images(2, 3, 5, 32, 48).to(dtype).transpose(3, 4)
    for patch, cell in (((16, 8), 8), ((16, 16), 4)):
        target = HOGTarget(patch, cell=cell, temporal_stride=2)
        got = hog_tokens(clips[:, :, ::2], target.bins, cell, 0, target.per_token)
        torch.testing.assert_close(got, target(clips), rtol=1e-5, atol=1e-5)


@has_kernel
def test_interpreted_kernel_keeps_nan():
    from mfm_core.targets.hog_triton import hog_tokens

    x = exact_images(1, 1, 16, 16)
    x[0, 0, 4, 4] = math.nan
    assert torch.equal(hog_tokens(x.unsqueeze(2), 9, 8, 0, (2, 2)).view(1, 1, 9, 2, 2).isnan(), hog(x).isnan())


def test_inference_mode_on_many_planes():
    """The mode belongs to a thread: enough planes to be shared out to several."""
    images = torch.randn(16, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        inside = hog(images.clone())
    torch.testing.assert_close(inside.clone(), hog(images), rtol=0, atol=0)
