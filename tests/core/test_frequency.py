"""Masks over spectra, corruptions and the distance of spectra: what must hold beside the golden numbers."""

from __future__ import annotations

import math

import pytest
import torch

from mfm_core.corruption.blur_kernels import BlurKernels, Shape, blur_kernel
from mfm_core.corruption.degrade import AddedNoise, Blur, LowResolution, NoDraw
from mfm_core.corruption.frequency import ClampedFilter, MagnitudeFilter
from mfm_core.corruption.noise import NoiseDraws
from mfm_core.errors import UserError
from mfm_core.heads.linear import SeparateHeads
from mfm_core.losses.frequency import REDUCTIONS, FrequencyDistance, PastedDistance, Variant
from mfm_core.masking.frequency import FrequencyMask, disc
from mfm_core.nn.init import init_as_torch, init_beit
from mfm_core.nn.patchify import patchify, unpatchify
from mfm_core.nn.vit import VisionTransformer
from mfm_core.targets.spectrum import SpectrumTarget

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZE, PATCH, GRID = (32, 32), (8, 8), (4, 4)


def images(count=4, seed=0):
    return torch.randn(count, 3, *SIZE, generator=torch.Generator().manual_seed(seed))


def energy(image):
    """(H, W) of the shifted spectrum, summed over the colours."""
    return torch.fft.fftshift(torch.fft.fft2(image), dim=(-2, -1)).abs().square().sum(dim=0)


BLUR = {
    "kinds": ("iso", "aniso", "generalized_iso", "generalized_aniso", "plateau_iso", "plateau_aniso", "sinc"),
    "probabilities": (1,) * 7,
    "sizes": (7, 9, 21),
    "sigma_x": (0.2, 3),
    "sigma_y": (0.2, 3),
    "theta": (-3.1416, 3.1416),
    "beta_gaussian": (0.5, 4),
    "beta_plateau": (1, 2),
}
DRAWS = {
    "frequency": FrequencyMask(SIZE, 6, 999, 0.5),
    "sr": NoDraw(),
    "deblur": BlurKernels(**BLUR),
    "denoise": NoiseDraws(("gaussian", "poisson"), (1, 1), (1, 30), 0.4, (0.05, 3), 0.4, MEAN, STD),
}
CORRUPTIONS = {
    "frequency": ClampedFilter(MEAN, STD),
    "magnitude": MagnitudeFilter(),
    "sr": LowResolution(4, MEAN, STD),
    "deblur": Blur(),
    "denoise": AddedNoise(MEAN, STD),
}


def drawn(kind, batch, seed=0):
    generator = torch.Generator().manual_seed(seed)
    draw = DRAWS["frequency" if kind == "magnitude" else kind]
    return torch.stack([draw(generator, image) for image in batch])


@pytest.mark.parametrize("order", ["hwc", "chw"])
@pytest.mark.parametrize("size, patch", [((32, 16), (8, 4)), ((4, 8, 12), (2, 4, 3))])
def test_patches(size, patch, order):
    """A token holds exactly its patch, in its order; putting together undoes cutting up."""
    x = torch.randn(2, 3, *size)
    tokens, grid = patchify(x, patch, order), tuple(n // p for n, p in zip(size, patch))
    assert torch.equal(unpatchify(tokens, grid, patch, 3, order), x)
    last = x[(slice(None), slice(None), *(slice(-p, None) for p in patch))]
    expected = last.movedim(1, -1) if order == "hwc" else last
    assert torch.equal(tokens[:, -1], expected.flatten(1))
    second = x[(slice(None), slice(None), *(slice(p) for p in patch[:-1]), slice(patch[-1], 2 * patch[-1]))]
    assert torch.equal(tokens[:, 1], (second.movedim(1, -1) if order == "hwc" else second).flatten(1))


def test_pixel_shuffle_order():
    x = torch.randn(2, 3 * 64, 4, 4)
    tokens = x.flatten(2).transpose(1, 2)
    shuffled = torch.nn.functional.pixel_shuffle(x, 8)
    assert torch.equal(unpatchify(tokens, (4, 4), (8, 8), 3, "chw"), shuffled)


def test_patches_that_do_not_fit_are_refused():
    for patch, order in (((5, 8), "chw"), ((8, 8, 8), "chw"), ((8, 8), "cwh")):
        with pytest.raises(ValueError):
            patchify(images(), patch, order)


@pytest.mark.parametrize("kind", [MagnitudeFilter(), ClampedFilter(MEAN, STD)], ids=["magnitude", "clamped"])
def test_polarity(kind):
    """True hides: a low-passed input has no energy in its hidden high frequencies, and the other way round."""
    masks = FrequencyMask(SIZE, 6, 999, 0.5)
    centre = (SIZE[0] // 2, SIZE[1] // 2)
    assert not masks.low_pass[centre] and masks.high_pass[centre]
    assert masks.low_pass[0, 0] and not masks.high_pass[0, 0]
    smooth = 0.5 + 0.02 * images(1)  # in [0, 1] by far, so that no clamp acts
    batch = smooth if isinstance(kind, MagnitudeFilter) else (smooth - kind.mean) / kind.std
    seen = kind(batch, masks.low_pass[None])
    spectrum = energy(seen[0])
    assert float(spectrum[masks.low_pass].sum()) < 1e-6 * float(spectrum.sum())
    if isinstance(kind, ClampedFilter):
        seen = kind.pixels(kind(batch, masks.high_pass[None]))
        assert float(seen.mean()) < 0.01, "the mean of the pixels is a low frequency"


def test_outer_radius_and_centre():
    band = disc((64, 64), 8, 24)
    rows = torch.arange(64) - 32
    distance = (rows[:, None].square() + rows.square()).double().sqrt()
    assert torch.equal(band, (distance < 8) | (distance >= 24))
    assert torch.equal(disc((65, 65), 16, 999), disc((65, 65), 16, 999).flip(0, 1))
    assert not torch.equal(disc((65, 65), 16, 999, "half"), disc((65, 65), 16, 999, "half").flip(0, 1))
    assert torch.equal(disc((64, 64), 16, 999, "half"), disc((64, 64), 16, 999))


@pytest.mark.parametrize("radius", [0, 40])
def test_a_disc_without_two_sides_is_refused(radius):
    with pytest.raises(UserError, match="MFM.RADIUS"):
        FrequencyMask(SIZE, radius, 999, 0.5)


@pytest.mark.parametrize("kind", list(DRAWS))
def test_draws_depend_on_the_generator_alone(kind):
    batch = images()
    torch.manual_seed(0)
    first = drawn(kind, batch)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    assert torch.equal(first, drawn(kind, batch))
    assert torch.equal(state, torch.get_rng_state()), "the global generator was used"
    if kind != "sr":
        assert any(not torch.equal(first, drawn(kind, batch, seed)) for seed in range(1, 6))


@pytest.mark.parametrize("kind", list(CORRUPTIONS))
def test_corruptions_are_per_image_and_in_float32(kind):
    """What is done to an image depends on that image and its draw alone, also under autocast."""
    corruption, batch = CORRUPTIONS[kind], images()
    mask = drawn(kind, batch)
    whole = corruption(batch, mask)
    assert whole.shape == batch.shape and whole.dtype == torch.float32
    assert not torch.allclose(whole, batch, atol=1e-3)
    for j in range(len(batch)):
        torch.testing.assert_close(corruption(batch[j : j + 1], mask[j : j + 1]), whole[j : j + 1], rtol=0, atol=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(corruption(batch, mask), whole, rtol=0, atol=1e-5)
    assert not corruption.state_dict(), "nothing of it belongs into checkpoints"


def test_kernels_are_padded_in_the_middle():
    """A padded kernel blurs as the kernel itself; a kernel is not flipped, and borders repeat no pixel."""
    kernel = blur_kernel("aniso", Shape(7, 2.0, 0.7, 0.6))
    padded = torch.zeros(21, 21)
    padded[7:14, 7:14] = kernel
    batch = images(1)
    torch.testing.assert_close(Blur()(batch, padded[None]), Blur()(batch, kernel[None]), rtol=0, atol=1e-5)
    shift = torch.zeros(1, 3, 3)
    shift[0, 1, 2] = 1  # correlation with it takes the right neighbour
    moved = Blur()(batch, shift)
    assert torch.equal(moved[..., :-1], batch[..., 1:])
    assert torch.equal(moved[..., -1], batch[..., -2]), "reflected about the last pixel"


def test_isotropic_kernels_ignore_what_is_not_theirs():
    for kind in ("iso", "generalized_iso", "plateau_iso"):
        one, other = (blur_kernel(kind, Shape(9, 1.5, sigma_y, theta)) for sigma_y, theta in ((1, 0), (3, 1)))
        assert torch.equal(one, other)
        torch.testing.assert_close(one, one.T)
    turned = blur_kernel("aniso", Shape(9, 1.0, 3.0, math.pi / 2))
    torch.testing.assert_close(turned, blur_kernel("aniso", Shape(9, 3.0, 1.0, 0.0)), rtol=1e-5, atol=1e-7)


def test_noise_kinds():
    generator, image = torch.Generator().manual_seed(0), (torch.rand(3, 64, 64) - 0.45) / 0.22
    options = {"poisson_scale": (1, 1), "poisson_grey": 0.0, "mean": (0.45,) * 3, "std": (0.22,) * 3}
    for sigma in (10.0, 75.0):
        noise = NoiseDraws(("gaussian",), (1,), (sigma, sigma), 0.0, **options)(generator, image)
        assert float(noise.std()) == pytest.approx(sigma / 255, rel=0.05)
        assert float((noise[0] * noise[1]).mean()) < 0.1 * (sigma / 255) ** 2, "the colours are independent"
    grey = NoiseDraws(("gaussian",), (1,), (10, 10), 1.0, **options)(generator, image)
    assert torch.equal(grey[0], grey[1]) and torch.equal(grey[0], grey[2])
    seen = AddedNoise((0.45,) * 3, (0.22,) * 3)(image[None], grey[None])
    torch.testing.assert_close(seen, image[None] + grey / 0.22)


def loss_of(reduction, **variant):
    return FrequencyDistance(GRID, PATCH, reduction, Variant(**variant))


def tokens(seed, channels=3):
    return patchify(images(seed=seed)[:, :channels], PATCH, "chw")


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("variant", [{}, {"with_matrix": True, "loss_gamma": 2.0}, {"patch_factor": 2}], ids=str)
def test_micro_batches_add_up(reduction, variant):
    """Weighted by `weight`, the losses of parts are the loss of the whole; an image counts as its reduction says."""
    loss, prediction, target = loss_of(reduction, **variant), tokens(0), tokens(1)
    masks = FrequencyMask(SIZE, 6, 999, 0.5)
    mask = torch.stack([masks.low_pass, masks.low_pass, masks.low_pass, masks.high_pass])
    whole = loss(prediction, target, mask)
    for cut in (1, 2, 3):
        parts = [slice(None, cut), slice(cut, None)]
        weights = torch.stack([loss.weight(mask[part]) for part in parts])
        losses = torch.stack([loss(prediction[part], target[part], mask[part]) for part in parts])
        torch.testing.assert_close((losses * weights).sum() / weights.sum(), whole, rtol=1e-6, atol=0)
    if not variant:
        expected = {"masked": float(mask.sum()), "normal": 4.0, "sample": 4.0}[reduction]
        assert float(loss.weight(mask)) == expected


def test_reductions_count_what_they_say():
    """An error at one frequency that is hidden in image 0 alone."""
    low = disc(SIZE, 6, 999)
    mask = torch.stack([~low, low])
    frequency = torch.zeros(SIZE, dtype=torch.complex64)
    frequency[16, 2] = 1.0  # 14 below the centre: high
    error = torch.fft.ifft2(torch.fft.ifftshift(frequency), norm="ortho").real
    target = torch.zeros(2, 3, *SIZE)
    prediction = patchify(target + error, PATCH, "chw")
    target = patchify(target, PATCH, "chw")
    amplitude = 2 * 0.5  # the real part has half of it at either sign
    eps = {"eps": 1e-20}
    hidden = mask.flatten(1).sum(dim=1)
    values = {name: float(loss_of(name, **eps)(prediction, target, mask)) for name in REDUCTIONS}
    assert values["masked"] == pytest.approx(amplitude / float(hidden.sum()), rel=1e-3)
    assert values["sample"] == pytest.approx(amplitude / float(hidden[0]) / 2, rel=1e-3)
    assert values["normal"] == pytest.approx(amplitude / 1024, rel=1e-3)


def test_nothing_hidden_is_no_nan():
    """Where the published losses give 0 / 0."""
    for reduction in ("masked", "sample"):
        prediction = tokens(0).requires_grad_()
        value = loss_of(reduction)(prediction, tokens(1), torch.zeros(4, *SIZE, dtype=torch.bool))
        value.backward()
        assert float(value.detach()) == 0 and float(prediction.grad.abs().max()) == 0
    mixed = torch.zeros(4, *SIZE, dtype=torch.bool)
    mixed[0] = disc(SIZE, 6, 999)
    assert torch.isfinite(loss_of("sample")(tokens(0), tokens(1), mixed))


def test_pieces_share_the_frequencies_of_the_image():
    """A wave of 12 periods per image has 6 in each half: hidden in the pieces' spectra where it is in the image's."""
    columns = torch.arange(SIZE[1])
    wave = torch.cos(2 * math.pi * 12 * columns / SIZE[1]).expand(1, 3, *SIZE)
    prediction, target = patchify(wave, PATCH, "chw"), torch.zeros(1, 16, 192)
    low = disc(SIZE, 10, 999)
    loss = loss_of("masked", patch_factor=2, eps=1e-20)
    assert float(loss(prediction, target, ~low[None])) > 0.05
    assert float(loss(prediction, target, low[None])) < 1e-5


def test_grey_target():
    batch = images()
    target = SpectrumTarget(PATCH, grey=True)
    assert target.dim == 64
    grey = target.to_images(target(batch), batch)
    torch.testing.assert_close(grey[:, 0], 0.299 * batch[:, 0] + 0.587 * batch[:, 1] + 0.114 * batch[:, 2])
    value = loss_of("normal")(target(images(seed=1)), target(batch), torch.empty(4, 0))
    spectra = torch.fft.fft2(target.to_images(target(images(seed=1)), batch) - grey, norm="ortho")
    torch.testing.assert_close(value, spectra.abs().mean(), rtol=1e-4, atol=0)


def test_visible_tokens_are_pasted():
    """Visible tokens of the prediction count for nothing, hidden ones for all frequencies of their image."""
    loss = PastedDistance(loss_of("normal"))
    prediction, target = tokens(0), tokens(1)
    mask = torch.zeros(4, 16, dtype=torch.bool)
    mask[:, 3] = True
    value = loss(prediction, target, mask)
    other = torch.where(mask[..., None], prediction, torch.full_like(prediction, 7.0))
    torch.testing.assert_close(loss(other, target, mask), value)
    pasted = torch.where(mask[..., None], prediction, target)
    torch.testing.assert_close(value, loss_of("normal")(pasted, target, torch.empty(4, 0)))
    halves = [loss(prediction[part], target[part], mask[part]) for part in (slice(2), slice(2, None))]
    torch.testing.assert_close(torch.stack(halves).mean(), value)
    assert float(loss.weight(mask)) == 4.0


def test_loss_is_in_float32_under_autocast():
    loss, mask = loss_of("masked"), disc(SIZE, 6, 999).expand(4, -1, -1)
    expected = loss(tokens(0), tokens(1), mask)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(loss(tokens(0), tokens(1), mask), expected, rtol=1e-6, atol=0)
        rounded = loss(tokens(0).bfloat16(), tokens(1), mask)
    torch.testing.assert_close(rounded, expected, rtol=1e-2, atol=0)


def test_vit_starts_as_beits_pre_training():
    """Cut off at one deviation; what each block adds to the residual stream shrinks with its depth; biases are zero."""
    vit = VisionTransformer((32, 32), (8, 8), (8, 8), (0, 0), embed_dim=96, depth=4, num_heads=3)
    init_beit(vit)
    cut = 0.02 * math.sqrt(1 - 2 * math.exp(-0.5) / math.sqrt(2 * math.pi) / math.erf(math.sqrt(0.5)))
    assert cut == pytest.approx(0.0108, rel=1e-2)
    for depth, block in enumerate(vit.blocks, start=1):
        for layer in (block.attn.proj, block.mlp.fc2):
            assert float(layer.weight.detach().std()) == pytest.approx(cut / math.sqrt(2 * depth), rel=0.05)
            assert not layer.bias.any()
        assert float(block.mlp.fc1.weight.detach().std()) == pytest.approx(cut, rel=0.05)
    for table in (vit.cls_token, vit.pos_embed, vit.patch_embed.proj.weight):
        assert float(table.detach().abs().max()) <= 0.02 and float(table.detach().std()) == pytest.approx(cut, rel=0.2)


def test_head_starts_as_torch_starts_convolutions():
    head = SeparateHeads(96, 192)
    init_as_torch(head)
    for values in (head.projections[0].weight, head.projections[0].bias):
        bound = 1 / math.sqrt(96)
        assert float(values.detach().abs().max()) == pytest.approx(bound, rel=0.05)
        assert float(values.detach().std()) == pytest.approx(bound / math.sqrt(3), rel=0.1)
