"""MFM as CoinCheung/MFM has it: magnitude filter, grey target, per-image loss, one-channel decoder on a ResNet.

That code shifts its spectra along the batch, too. Image j therefore meets mask row (j + B // 2) mod B, and so do
target and prediction: the pairs are ours, in another order.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from golden_cases import cases, load_case

from mfm_core.corruption.frequency import MagnitudeFilter
from mfm_core.heads.linear import SeparateHeads
from mfm_core.losses.frequency import FrequencyDistance, Variant
from mfm_core.masking.frequency import FrequencyMask
from mfm_core.nn.colour import luma
from mfm_core.nn.patchify import patchify
from mfm_core.objective import CorruptedPrediction
from mfm_core.targets.spectrum import SpectrumTarget
from mfm_image.backbones.resnet import ResNet

EPS = 1e-7


def cases_of(name):
    return pytest.mark.parametrize("folder", cases(f"mfm_coincheung/{name}"), ids=lambda p: p.name)


def tolerance_of(case):
    return {key: case["tolerance"][key] for key in ("rtol", "atol")}


def rows_of(images):
    """Which row of index, mask and target goes with each image."""
    count = len(images)
    return [(j + count // 2) % count for j in range(count)]


def hidden_of(index, size, radius, centre="half"):
    masks = FrequencyMask(size, radius, 999, 0.5, centre)
    return torch.stack([(masks.low_pass, masks.high_pass)[int(i)] for i in index])


def spectrum(images):
    """(B, C, H, W) to (B, C, H, W, 2): orthonormal, shifted along the image's axes."""
    shifted = torch.fft.fftshift(torch.fft.fft2(images, norm="ortho"), dim=(-2, -1))
    return torch.view_as_real(shifted)


def whole(image):
    return patchify(image, tuple(image.shape[-2:]), "chw")


@cases_of("fft_mask")
def test_filter_and_target(folder):
    case, io = load_case(folder)
    tolerance, checked = tolerance_of(case), 0
    for name, run in case["config"]["runs"].items():
        if f"in_{name}_image" not in io:
            continue
        images, rows = io[f"in_{name}_image"], rows_of(io[f"in_{name}_image"])
        hidden = hidden_of(run["index"], tuple(images.shape[-2:]), run["rad"])
        assert [int(io[f"in_{name}_index"][row]) for row in rows] == run["mask_index_seen_by_image"]
        assert torch.equal(~hidden, io[f"out_{name}_mask"][:, 0].bool())
        for row in range(len(images)):
            assert int((~hidden[row]).sum()) == run["kept_points"][f"index{run['index'][row]}"]
        torch.testing.assert_close(MagnitudeFilter()(images, hidden[rows]), io[f"out_{name}_image"], **tolerance)
        target = SpectrumTarget(tuple(images.shape[-2:]), grey=True)
        grey = target.to_images(target(images), images)
        torch.testing.assert_close(spectrum(grey), io[f"out_{name}_target"][rows], **tolerance)
        checked += 1
    assert checked == sum(name.endswith("_image") and name.startswith("in_") for name in io)


@cases_of("fft_mask")
def test_large_images(folder):
    case, io = load_case(folder)
    tolerance, config = tolerance_of(case), case["config"]
    run = config["runs"]["b2_224"]
    normal = config["input_normalisation"]
    images = (io["in_224_u8_nchw"].float() / 255 - normal["mean"]) / normal["std"]
    rows = rows_of(images)
    hidden = hidden_of(run["index"], tuple(images.shape[-2:]), run["rad"])
    bits = np.unpackbits(io["out_224_mask_packed"].numpy())[: hidden.numel()]
    assert torch.equal(~hidden.flatten(), torch.from_numpy(bits).bool())
    seen = MagnitudeFilter()(images, hidden[rows])
    torch.testing.assert_close(seen[:, :, 2::6, 4::6], io["out_224_image_sub"], **tolerance)
    for image, mean, std in zip(seen, run["image_mean"], run["image_std"]):
        assert float(image.mean()) == pytest.approx(mean, rel=1e-4)
        assert float(image.std()) == pytest.approx(std, rel=1e-4)
    spectra = spectrum(luma(images))[rows]
    torch.testing.assert_close(spectra[:, :, 92:132, 92:132], io["out_224_target_centre"], rtol=1e-4, atol=1e-3)
    sums = torch.view_as_complex(spectra).abs().sum(dim=(1, 2, 3)).tolist()
    assert sums == pytest.approx(run["target_abs_sum"], rel=1e-4)


@cases_of("focal_frequency_loss")
def test_loss(folder):
    case, io = load_case(folder)
    config, tolerance = case["config"], tolerance_of(case)
    images, rows = io["in_image"], rows_of(io["in_image"])
    size = tuple(images.shape[-2:])
    torch.testing.assert_close(spectrum(luma(images)), io["in_target"][rows], rtol=1e-4, atol=1e-5)
    hidden = ~io["in_mask"][:, 0].bool()
    assert torch.equal(hidden, hidden_of(config["index"], size, config["rad"]))
    for name, run in config["runs"].items():
        reduction = "sample" if run["masked"] else "normal"
        loss = FrequencyDistance((1, 1), size, reduction, Variant(loss_gamma=run["gamma"], eps=EPS))
        prediction = io["in_pred"].clone().requires_grad_()
        value = loss(whole(prediction), whole(luma(images)), hidden[rows])
        torch.testing.assert_close(value, io[f"out_{name}_loss"], **tolerance)
        value.backward()
        expected = io[f"out_{name}_grad"]
        atol = 1e-4 * float(expected.abs().max())
        torch.testing.assert_close(prediction.grad, expected, rtol=1e-4, atol=atol)


@cases_of("focal_frequency_loss")
def test_loss_of_single_images(folder):
    case, io = load_case(folder)
    images, rows = io["in_image"], rows_of(io["in_image"])
    size = tuple(images.shape[-2:])
    hidden = ~io["in_mask"][:, 0].bool()[rows]
    loss = FrequencyDistance((1, 1), size, "sample", Variant(eps=EPS))
    parts = [
        float(loss(whole(io["in_pred"][j : j + 1]), whole(luma(images[j : j + 1])), hidden[j : j + 1]))
        for j in range(len(images))
    ]
    listed = case["config"]["per_image_loss_gamma1_masked"]
    assert sorted(parts) == pytest.approx(sorted(listed), rel=1e-4)


@cases_of("focal_frequency_loss")
def test_loss_of_three_channels(folder):
    case, io = load_case(folder)
    count, channels, *size = io["in_3ch_pred"].shape
    spectra = torch.view_as_complex(io["in_3ch_target_unrolled"])
    images = torch.fft.ifft2(torch.fft.ifftshift(spectra, dim=(-2, -1)), norm="ortho").real
    images = images.roll((-(count // 2), -(channels // 2)), dims=(0, 1))
    loss = FrequencyDistance((1, 1), tuple(size), "normal", Variant(eps=EPS))
    value = loss(whole(io["in_3ch_pred"]), whole(images), torch.empty(count, 0))
    torch.testing.assert_close(value, io["out_3ch_loss"], **tolerance_of(case))


@cases_of("resnet")
def test_resnet(folder):
    case, io = load_case(folder)
    config, tolerance = case["config"], tolerance_of(case)
    images = io["in_image"]
    size = tuple(images.shape[-2:])
    backbone = ResNet(size, config["layers"], config["stem_channels"], config["stage_planes"])
    target = SpectrumTarget(backbone.patch_stride, grey=True)
    model = CorruptedPrediction(
        backbone=backbone,
        corruption=MagnitudeFilter(),
        head=SeparateHeads(backbone.embed_dim, target.dim, norm=backbone.needs_norm),
        target=target,
        loss=FrequencyDistance(backbone.grid, backbone.patch_stride, "sample", Variant(eps=EPS)),
    )
    load(model, folder)
    hidden = hidden_of(config["index"], size, config["rad"])[rows_of(images)]
    torch.testing.assert_close(model.corruption(images, hidden), io["out_filtered"], rtol=1e-4, atol=5e-5)

    output = model.eval()(images, hidden)
    features = backbone.tokens(io["out_filtered"]).transpose(1, 2).unflatten(2, backbone.grid)
    torch.testing.assert_close(features, io["out_eval_backbone"], **tolerance)
    torch.testing.assert_close(target.to_images(output.prediction, images), io["out_eval_pred"], **tolerance)
    torch.testing.assert_close(output.loss, io["out_eval_loss"], **tolerance)

    output = model.train()(images, hidden)
    torch.testing.assert_close(target.to_images(output.prediction, images), io["out_train_pred"], **tolerance)
    torch.testing.assert_close(output.loss, io["out_train_loss"], **tolerance)
    output.loss.backward()
    for parameter, name in (
        (backbone.conv1.weight, "out_train_grad_conv1"),
        (model.head.projections[0].bias, "out_train_grad_decoder_bias"),
    ):
        atol = 1e-3 * float(io[name].abs().max())
        torch.testing.assert_close(parameter.grad, io[name], rtol=1e-3, atol=atol)


def load(model, folder):
    """The case's weights under our names, all of them."""
    state = {}
    for name, tensor in torch.load(folder / "weights.pth", weights_only=True)["model"].items():
        if name.startswith("decoder.0."):
            state[name.replace("decoder.0.", "head.projections.0.")] = tensor.flatten(1) if tensor.ndim > 1 else tensor
        else:
            state[f"backbone.{name}"] = tensor
    model.load_state_dict(state, strict=True)
