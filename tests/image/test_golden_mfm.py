"""MFM and its siblings against the official implementation: masks, corruptions, loss, ResNet and ViT."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from golden_cases import cases, load_case

from mfm_core.config import load_config
from mfm_core.corruption.blur_kernels import Shape, blur_kernel
from mfm_core.corruption.degrade import AddedNoise, Blur, LowResolution
from mfm_core.corruption.frequency import ClampedFilter, filtered
from mfm_core.corruption.noise import NoiseDraws, gaussian_noise
from mfm_core.heads.linear import SeparateHeads
from mfm_core.losses.frequency import FrequencyDistance, Variant, distances
from mfm_core.masking.frequency import FrequencyMask, disc
from mfm_core.nn.patchify import patchify
from mfm_core.nn.vit import VisionTransformer
from mfm_core.objective import CorruptedPrediction
from mfm_core.targets.spectrum import SpectrumTarget
from mfm_image.backbones.resnet import ResNet
from mfm_image.methods.mfm import blur_kernels_from_cfg

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def cases_of(name):
    return pytest.mark.parametrize("folder", cases(f"mfm_official/{name}"), ids=lambda p: p.name)


def tolerance_of(case):
    return {key: case["tolerance"][key] for key in ("rtol", "atol")}


def normalised(pixels, mean=MEAN, std=STD):
    return (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


def whole(image):
    """An image as the single token of a grid of one."""
    return patchify(image, tuple(image.shape[-2:]), "chw")


def distance_of(size, reduction, **variant):
    return FrequencyDistance((1, 1), size, reduction, Variant(**variant))


@cases_of("freq_mask")
def test_masks(folder):
    case, io = load_case(folder)
    for name, entry in case["config"]["masks"].items():
        size = (entry["size"], entry["size"])
        masks = FrequencyMask(size, entry["mask_radius1"], entry["mask_radius2"], 0.5)
        for kind, hidden in (("low", masks.low_pass), ("high", masks.high_pass)):
            if entry["packed"]:
                bits = np.unpackbits(io[f"out_{kind}_packed_{name}"].numpy())[: size[0] * size[1]]
                kept = torch.from_numpy(bits).view(size).bool()
            else:
                kept = io[f"out_{kind}_{name}"].bool()
            assert torch.equal(hidden, ~kept), name
            assert int(kept.sum()) == entry[f"kept_{kind}"]


@cases_of("freq_mask")
def test_corrupted_images(folder):
    case, io = load_case(folder)
    config, tolerance = case["config"], tolerance_of(case)
    mean, std = config["normalise_mean"], config["normalise_std"]
    corruption = ClampedFilter(mean, std)

    for radius in config["filter_radii"]:
        low = disc((config["filter_size"],) * 2, radius, 999)
        for name, kept in (("low_high", (low, ~low)), ("high_low", (~low, low))):
            hidden = ~torch.stack(kept)
            images = normalised(io["in_photo"], mean, std)
            seen = corruption(images, hidden)
            torch.testing.assert_close(corruption.pixels(seen), io[f"out_clamped_r{radius}_{name}"], **tolerance)
            for kind, actual in (
                ("unclamped", filtered(corruption.pixels(images), hidden).real),
                ("encoder_input", seen),
            ):
                if f"out_{kind}_r{radius}_{name}" in io:
                    torch.testing.assert_close(actual, io[f"out_{kind}_r{radius}_{name}"], **tolerance)
    target = SpectrumTarget((16, 16))
    images = normalised(io["in_photo"], mean, std)
    torch.testing.assert_close(target.to_images(target(images), images), io["out_target_normalised"], **tolerance)
    low = disc((config["odd_size"],) * 2, config["odd_radius"], 999)
    for kind, kept in (("low", low), ("high", ~low)):
        odd = normalised(io["in_photo_odd"], mean, std)
        real = filtered(corruption.pixels(odd), ~kept[None]).real
        torch.testing.assert_close(real, io[f"out_odd_unclamped_{kind}"], **tolerance)
        seen = corruption.pixels(corruption(odd, ~kept[None]))
        torch.testing.assert_close(seen, io[f"out_odd_clamped_{kind}"], **tolerance)


@cases_of("freq_mask")
def test_corrupted_large_image(folder):
    case, io = load_case(folder)
    config, tolerance = case["config"], tolerance_of(case)
    pixels = io["in_photo224_u8_hwc"].permute(2, 0, 1)[None].float() / 255
    corruption = ClampedFilter(config["normalise_mean"], config["normalise_std"])
    low = disc(tuple(pixels.shape[-2:]), config["size_224"]["radius"], 999)
    for kind, kept in (("low", low), ("high", ~low)):
        seen = corruption(normalised(pixels, config["normalise_mean"], config["normalise_std"]), ~kept[None])
        picked, stats = seen[:, :, 3::8, 5::8], config["size_224"]["stats"][kind]
        torch.testing.assert_close(picked, io[f"out_224_encoder_input_{kind}_sub"], **tolerance)
        torch.testing.assert_close(corruption.pixels(picked), io[f"out_224_clamped_{kind}_sub"], **tolerance)
        assert float(seen.mean()) == pytest.approx(stats["enc_mean"], rel=1e-4)
        assert float(seen.std()) == pytest.approx(stats["enc_std"], rel=1e-4)


@cases_of("freq_mask")
def test_share_of_low_pass_inputs(folder):
    """sample_ratio is the probability of a low-pass input: theirs and ours lie within four standard errors of it."""
    case, _ = load_case(folder)
    draws = case["config"]["draws"]
    ratio, count = draws["sample_ratio"], draws["n"]
    error = (ratio * (1 - ratio) / count) ** 0.5
    masks = FrequencyMask((64, 64), 16, 999, ratio)
    generator = torch.Generator().manual_seed(0)
    low = sum(torch.equal(masks(generator), masks.low_pass) for _ in range(count))
    assert abs(draws["n_low"] / count - ratio) < 4 * error
    assert abs(low / count - ratio) < 4 * error


@cases_of("frequency_loss")
def test_loss_variants(folder):
    case, io = load_case(folder)
    tolerance = tolerance_of(case)
    for name, entry in case["config"]["variants"].items():
        fields = {key: value for key, value in entry.items() if key not in ("elem_shape", "mean")}
        prediction = io["in_pred"].clone().requires_grad_()
        matrix = torch.fft.ifftshift(io["in_given_matrix"], dim=(-2, -1)) if name == "given_matrix" else None
        elements = distances(prediction, io["in_target"], Variant(**fields), matrix)
        assert list(elements.shape) == entry["elem_shape"], name
        shifted = torch.fft.fftshift(elements, dim=(-2, -1))
        torch.testing.assert_close(shifted, io[f"out_{name}_elem"], **tolerance, msg=lambda m, n=name: f"{n}: {m}")
        torch.testing.assert_close(elements.mean(), io[f"out_{name}_mean"], **tolerance)
        elements.mean().backward()
        check_gradient(prediction.grad, io[f"out_{name}_grad"], tolerance, name)


def check_gradient(actual, expected, tolerance, name=""):
    """Absolute errors relative to the largest element."""
    atol = tolerance["atol"] * float(expected.abs().max())
    torch.testing.assert_close(actual, expected, rtol=tolerance["rtol"], atol=atol, msg=lambda m: f"{name}: {m}")


@cases_of("frequency_loss")
def test_equal_images(folder):
    case, io = load_case(folder)
    prediction = io["in_target"].clone().requires_grad_()
    elements = distances(prediction, io["in_target"], Variant())
    torch.testing.assert_close(elements.max(), io["out_equal_elem_max"], rtol=1e-3, atol=0)
    torch.testing.assert_close(elements.mean(), io["out_equal_mean"], rtol=1e-3, atol=0)
    elements.mean().backward()
    assert float(prediction.grad.abs().max()) <= float(io["out_equal_grad_absmax"]) + 1e-8


@cases_of("frequency_loss")
def test_loss_reductions(folder):
    case, io = load_case(folder)
    reduction, tolerance = case["config"]["reduction"], tolerance_of(case)
    hidden = ~io["in_red_mask"].bool()
    low = disc((reduction["size"],) * 2, reduction["radius"], 999)
    assert torch.equal(hidden, torch.stack([~low if is_low else low for is_low in reduction["is_low_pass"]]))
    target = normalised(io["in_red_image"])
    for name, run in reduction["runs"].items():
        options = dict(zip(run.get("options", [])[::2], run.get("options", [])[1::2]))
        kind = options.pop("MODEL.RECOVER_TARGET_TYPE", "masked")
        fields = {
            key.rsplit(".", 1)[1].lower(): json.loads(value.lower().rstrip(".")) for key, value in options.items()
        }
        loss = distance_of(tuple(target.shape[-2:]), kind, **fields)
        prediction = io["in_red_pred"].clone().requires_grad_()
        value = loss(whole(prediction), whole(target), hidden)
        if "error" in run:  # masked pieces fail there, and not here
            assert torch.isfinite(value)
            continue
        assert float(value.detach()) == pytest.approx(run["loss"], rel=tolerance["rtol"]), name
        torch.testing.assert_close(value, io[f"out_red_{name}_loss"], **tolerance)
        value.backward()
        check_gradient(prediction.grad, io[f"out_red_{name}_grad"], tolerance, name)


def official_model(backbone, target, config):
    assert tuple(backbone.patch_stride) == target.patch == (config["encoder_stride"],) * 2
    variant = Variant(loss_gamma=config["loss_gamma"])
    return CorruptedPrediction(
        backbone=backbone,
        corruption=ClampedFilter(MEAN, STD),
        head=SeparateHeads(backbone.embed_dim, target.dim, norm=backbone.needs_norm),
        target=target,
        loss=FrequencyDistance(backbone.grid, backbone.patch_stride, config["recover_target_type"], variant),
    )


def load(model, folder):
    """The case's weights under our names; every tensor of either side must have its counterpart."""
    theirs, ours = torch.load(folder / "weights.pth", weights_only=True)["model"], {}
    for name, tensor in theirs.items():
        if name.startswith("decoder.0."):
            ours[name.replace("decoder.0.", "head.projections.0.")] = tensor.flatten(1) if tensor.ndim > 1 else tensor
        elif name.startswith("encoder.norm."):
            ours[name.replace("encoder.norm.", "head.transforms.0.0.")] = tensor
        elif name.endswith("q_bias"):  # keys have no bias there: a zero one here
            fused = torch.cat([tensor, torch.zeros_like(tensor), theirs[name.replace("q_bias", "v_bias")]])
            ours[name.replace("encoder.", "backbone.").replace("q_bias", "qkv.bias")] = fused
        elif not name.endswith("v_bias"):
            ours[name.replace("encoder.", "backbone.")] = tensor
    model.load_state_dict(ours, strict=True)
    return model


@cases_of("resnet")
def test_resnet(folder):
    case, io = load_case(folder)
    config, tolerance = case["config"], tolerance_of(case)
    exact = {"rtol": 1e-4, "atol": 2e-5}
    size = (config["image_size"],) * 2
    backbone = ResNet(size, config["layers"], config["stem_channels"], config["stage_planes"])
    target = SpectrumTarget(backbone.patch_stride)
    model = load(official_model(backbone, target, config), folder)
    images, hidden = normalised(io["in_image"]), ~io["in_mask"].bool()
    masks = FrequencyMask(size, config["mask_radius"], 999, 0.5)
    kinds = {1: masks.low_pass, 0: masks.high_pass}
    assert torch.equal(hidden, torch.stack([kinds[k] for k in config["mask_is_low_pass"]]))
    torch.testing.assert_close(model.corruption(images, hidden), io["out_encoder_input"], **exact)

    model.eval()
    output = model(images, hidden)
    features = backbone.tokens(io["out_encoder_input"]).transpose(1, 2).unflatten(2, backbone.grid)
    torch.testing.assert_close(features, io["out_eval_features"], **tolerance)
    torch.testing.assert_close(target.to_images(output.prediction, images), io["out_eval_pred"], **tolerance)
    torch.testing.assert_close(output.loss, io["out_eval_loss"], **exact)

    model.train()
    before = {name: tensor.clone() for name, tensor in backbone.bn1.named_buffers()}
    output = model(images, hidden)
    check_statistics(backbone, before, io, config["bn_momentum"])
    torch.testing.assert_close(target.to_images(output.prediction, images), io["out_train_pred"], **tolerance)
    torch.testing.assert_close(output.loss, io["out_train_loss"], **tolerance)
    normal = FrequencyDistance(backbone.grid, backbone.patch_stride, "normal", model.loss.variant)
    loss = normal(output.prediction, output.target, hidden)
    torch.testing.assert_close(loss, io["out_train_loss_normal"], **tolerance)
    output.loss.backward()
    check_gradient(backbone.conv1.weight.grad, io["out_train_grad_conv1"], {"rtol": 1e-3, "atol": 1e-3})
    check_gradient(model.head.projections[0].bias.grad, io["out_train_grad_decoder_bias"], {"rtol": 1e-3, "atol": 1e-3})
    total = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])
    assert float(total) == pytest.approx(config["checks"]["train_grad_norm_total"], rel=1e-3)


def check_statistics(backbone, before, io, momentum):
    """One step moves the running statistics by `momentum`.

    What the case records after a step is what its weights hold already: they were saved after it.
    """
    maps = backbone.conv1(io["out_encoder_input"]).transpose(0, 1).flatten(1)
    for name, batch in (("running_mean", maps.mean(dim=1)), ("running_var", maps.var(dim=1))):
        after, recorded = getattr(backbone.bn1, name), io[f"out_train_bn1_{name}_after"]
        expected = (1 - momentum) * before[name] + momentum * batch
        torch.testing.assert_close(after, expected, rtol=1e-4, atol=2e-5)
        assert any(torch.allclose(recorded, ours, rtol=1e-4, atol=2e-5) for ours in (before[name], after))
    assert int(backbone.bn1.num_batches_tracked) == int(before["num_batches_tracked"]) + 1


@cases_of("vit")
def test_vit(folder):
    case, io = load_case(folder)
    config, tolerance = case["config"], tolerance_of(case)
    size, patch = (config["image_size"],) * 2, (config["patch_size"],) * 2
    backbone = VisionTransformer(
        size,
        patch,
        patch,
        (0, 0),
        embed_dim=config["embed_dim"],
        depth=config["depth"],
        num_heads=config["num_heads"],
        mlp_ratio=config["mlp_ratio"],
    )
    target = SpectrumTarget(patch)
    model = load(official_model(backbone, target, config), folder)
    images, hidden = normalised(io["in_image"]), ~io["in_mask"].bool()
    torch.testing.assert_close(model.corruption(images, hidden), io["out_encoder_input"], **tolerance)
    tokens = model.head.transforms[0](backbone.tokens(io["out_encoder_input"])[:, backbone.num_prefix_tokens :])
    features = tokens.transpose(1, 2).unflatten(2, backbone.grid)
    torch.testing.assert_close(features, io["out_features"], **tolerance)
    output = model(images, hidden)
    torch.testing.assert_close(target.to_images(output.prediction, images), io["out_pred"], **tolerance)
    torch.testing.assert_close(output.loss, io["out_loss"], **tolerance)
    normal = FrequencyDistance(backbone.grid, patch, "normal", model.loss.variant)
    normal = normal(output.prediction, output.target, hidden)
    torch.testing.assert_close(normal, io["out_loss_normal"], **tolerance)
    output.loss.backward()
    width = config["embed_dim"]
    check_gradient(backbone.pos_embed.grad, io["out_grad_pos_embed"], tolerance)
    check_gradient(backbone.blocks[0].attn.qkv.bias.grad[:width], io["out_grad_q_bias0"], tolerance)
    check_gradient(model.head.projections[0].bias.grad, io["out_grad_decoder_bias"], tolerance)
    total = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])
    assert float(total) == pytest.approx(config["checks"]["grad_norm_total"], rel=1e-4)


@cases_of("degradations")
def test_super_resolution(folder):
    case, io = load_case(folder)
    tolerance = tolerance_of(case)
    images = normalised(io["in_photo"])
    for factor in case["config"]["sr"]["factors"]:
        corruption = LowResolution(factor, MEAN, STD)
        seen = corruption(images, torch.empty(len(images), 0))
        torch.testing.assert_close(seen, io[f"out_sr{factor}_encoder_input"], **tolerance)
        torch.testing.assert_close(corruption.pixels(seen), io[f"out_sr{factor}_lq"], **tolerance)
        loss = distance_of(tuple(images.shape[-2:]), "normal")
        value = loss(whole(io[f"in_sr{factor}_pred"]), whole(images), torch.empty(len(images), 0))
        torch.testing.assert_close(value, io[f"out_sr{factor}_loss"], **tolerance)


def kernels_of(config):
    """(name in io, kind, shape) of every kernel that the case lists."""
    for name in config["iso_sigma5"]:
        yield name, "iso", Shape(int(name.rsplit("_k", 1)[1]), sigma_x=5.0)
    given = config["other_kernels"]
    fields = {key: given[key] for key in ("sigma_x", "sigma_y", "theta", "beta", "omega")}
    for kind in config["defaults"]["blur"]["KERNEL_LIST"]:
        yield kind, kind, Shape(given["kernel_size"], **fields)


@cases_of("degradations")
def test_blur(folder):
    case, io = load_case(folder)
    largest, blurred, seen = max(case["config"]["defaults"]["blur"]["KERNEL_SIZE"]), 0, 0
    for name, kind, shape in kernels_of(case["config"]):
        kernel = blur_kernel(kind, shape)
        assert float(kernel.sum()) == pytest.approx(1, abs=1e-6)
        if f"out_kernel_{name}" in io:
            torch.testing.assert_close(kernel, io[f"out_kernel_{name}"], rtol=1e-4, atol=1e-7)
            seen += 1
        if f"out_blur_{name}" in io:
            border = (largest - shape.size) // 2
            padded = torch.nn.functional.pad(kernel, [border] * 4)[None]
            for image, kernels in ((io["in_photo"], kernel[None]), (io["in_photo"], padded)):
                result = Blur()(normalised(image), kernels)
                torch.testing.assert_close(result, normalised(io[f"out_blur_{name}"]), rtol=1e-4, atol=5e-5)
            blurred += 1
    assert seen == sum(name.startswith("out_kernel_") for name in io)
    assert blurred == sum(name.startswith("out_blur_") for name in io)


@cases_of("degradations")
def test_noise(folder):
    case, io = load_case(folder)
    tolerance = tolerance_of(case)
    images, normal = normalised(io["in_photo"]), io["in_noise_hwc"].permute(2, 0, 1)
    corruption = AddedNoise(MEAN, STD)
    for name, sigma, grey in (("gaussian_s75", 75, False), ("gaussian_s20_gray", 20, True)):
        seen = corruption(images, gaussian_noise(normal, sigma, grey)[None])
        torch.testing.assert_close(corruption.pixels(seen), io[f"out_noise_{name}"], **tolerance)
    seen = corruption(images, gaussian_noise(normal, 75, False)[None])
    torch.testing.assert_close(seen, io["out_denoise_encoder_input"], rtol=1e-4, atol=5e-5)
    value = distance_of(tuple(images.shape[-2:]), "normal")(whole(io["in_sr8_pred"]), whole(images), seen)
    torch.testing.assert_close(value, io["out_denoise_loss_same_pred"], **tolerance)


@cases_of("degradations")
def test_poisson_noise(folder):
    case, io = load_case(folder)
    expected = case["config"]["poisson_example_statistics"]
    scale = [expected["scale"]] * 2
    draws = NoiseDraws(["poisson"], [1.0], [1, 1], 0.0, scale, 0.0, MEAN, STD)
    image = normalised(io["in_photo"])[0]
    noise = torch.stack([draws(torch.Generator().manual_seed(seed), image) for seed in range(8)])
    assert float(noise.std()) == pytest.approx(expected["std_minus_input"], rel=0.03)
    assert abs(float(noise.mean())) < 3e-3
    levels = 2 ** np.ceil(np.log2(expected["unique_values"]))
    counted = (noise / expected["scale"] + (io["in_photo"][0] * 255).round() / 255) * levels
    torch.testing.assert_close(counted, counted.round(), rtol=0, atol=1e-3)
    grey = NoiseDraws(["poisson"], [1.0], [1, 1], 0.0, scale, 1.0, MEAN, STD)(torch.Generator(), image)
    assert torch.equal(grey[0], grey[1]) and torch.equal(grey[0], grey[2])


@cases_of("degradations")
def test_draws_of_kernels(folder):
    """Kernel sizes come as often as in the recorded draws; kinds and ranges are the configured ones."""
    case, _ = load_case(folder)
    config = case["config"]
    blur, recorded = config["defaults"]["blur"], config["kernel_size_counts_in_4000_draws"]
    count = sum(recorded.values())
    draws = blur_kernels_from_cfg(load_config(None), (1, 1))
    generator = torch.Generator().manual_seed(0)
    drawn = [draws.draw(generator) for _ in range(count)]
    for size, times in recorded.items():
        ours = sum(shape.size == int(size) for _, shape in drawn)
        assert abs(ours - times) < 5 * (2 * count / len(recorded)) ** 0.5
    total = sum(blur["KERNEL_PROB"])
    for kind, weight in zip(blur["KERNEL_LIST"], blur["KERNEL_PROB"]):
        share = sum(name == kind for name, _ in drawn) / count
        assert abs(share - weight / total) < 5 * (weight * (1 - weight) / count) ** 0.5
    for field, key in (("sigma_x", "SIGMA_X"), ("sigma_y", "SIGMA_Y"), ("theta", "ROTATE_ANGLE")):
        check_uniform([getattr(shape, field) for _, shape in drawn], *blur[key])
    for prefix, key in (("generalized", "BETA_GAUSSIAN"), ("plateau", "BETA_PLATEAU")):
        check_uniform([shape.beta for kind, shape in drawn if kind.startswith(prefix)], *blur[key])
    check_uniform([shape.omega for _, shape in drawn if shape.size < 13], np.pi / 3, np.pi)
    check_uniform([shape.omega for _, shape in drawn if shape.size >= 13], np.pi / 5, np.pi)


def check_uniform(values, low, high):
    values = np.array(values)
    assert values.min() >= low and values.max() <= high
    assert abs(values.mean() - (low + high) / 2) < 5 * (high - low) / (12 * len(values)) ** 0.5
    assert values.max() - values.min() > 0.9 * (high - low)


@cases_of("degradations")
def test_default_values(folder):
    case, _ = load_case(folder)
    mfm = load_config(None, []).MFM
    for section, prefix in (("blur", "BLUR"), ("noise", "NOISE")):
        for key, value in case["config"]["defaults"][section].items():
            assert mfm[f"{prefix}_{key}".replace("GRAY_NOISE", "GREY")] == value, key
