"""Losses and targets of classification beside those of timm, mmpretrain, MFM and CoinCheung/MFM."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden_cases import cases, load_case
from timm.data import Mixup

from mfm_core.data.mixing import PARTNERS, Mixer, cut_box, kept_share, mix_images, mix_targets
from mfm_core.losses.classification import (
    CLASS_LOSSES,
    binary_cross_entropy,
    probabilities,
    smooth_labels,
    soft_cross_entropy,
)


def found(kind: str):
    return pytest.mark.parametrize("folder", cases(kind), ids=lambda p: f"{p.parent.name}-{p.name}")


def loss_and_gradient(loss, logits, target):
    logits = logits.clone().requires_grad_()
    value = loss(logits, target)
    value.backward()
    return value.detach(), logits.grad


@found("mfm_coincheung/finetune_loss")
def test_bce_and_targets_of_coincheung(folder):
    case, io = load_case(folder)
    about, tolerance = case["config"], case["tolerance"]
    labels, logits, image = io["in_labels"], io["in_logits"], io["in_image"]

    def close(ours, theirs):
        torch.testing.assert_close(ours, theirs, **tolerance)

    smoothed = smooth_labels(F.one_hot(labels, about["classes"]).float(), about["label_smoothing"], over="others")
    close(smoothed, io["out_smoothed"])
    targets = {"smoothed": smoothed, "eval": labels}
    for kind in ("mixup", "cutmix"):
        share, box = float(io[f"in_{kind}_lambda_drawn"]), None
        if kind == "cutmix":
            column, row = io["in_cutmix_centre_xy"].tolist()
            box = cut_box(share, (row, column), *image.shape[-2:])
            share = kept_share(box, *image.shape[-2:])
        assert share == pytest.approx(about["results"][kind]["own_label_weight"], abs=1e-6)
        order = PARTNERS["next"](len(image))
        mixed = mix_images(image, image[order], share, box)
        close(mixed, io[f"out_{kind}_image"])
        targets[kind] = mix_targets(smoothed, smoothed[order], share)
        close(targets[kind], io[f"out_{kind}_target"])
        # the training task smooths what is already mixed: the same
        plain = F.one_hot(labels, about["classes"]).float()
        later = smooth_labels(mix_targets(plain, plain[order], share), about["label_smoothing"], "others")
        close(later, io[f"out_{kind}_target"])
    for kind, target in targets.items():
        loss, gradient = loss_and_gradient(binary_cross_entropy, logits, target)
        close(loss, io[f"out_{kind}_loss"])
        close(gradient, io[f"out_{kind}_grad"])
    off, on = about["results"]["off_on_values_1000_classes_0p1"]
    row = smooth_labels(F.one_hot(torch.tensor([3]), 1000).double(), 0.1, over="others")[0]
    assert float(row[3]) == pytest.approx(on) and float(row[0]) == pytest.approx(off)


@found("mmpretrain/mff_classify")
def test_smoothing_of_mmpretrain(folder):
    """Smoothing on top of mixed targets, and of hard ones."""
    case, io = load_case(folder)
    head = case["config"]["finetune"]["head"]
    amount, classes = head["loss"]["label_smooth_val"], head["num_classes"]
    for target, loss in (
        (F.one_hot(io["in_label"], classes).float(), io["out_ft_loss_hard"]),
        (io["in_soft_label"], io["out_ft_loss_soft"]),
    ):
        ours = soft_cross_entropy(io["out_ft_logits"], smooth_labels(target, amount))
        torch.testing.assert_close(ours, loss, **case["tolerance"])
    score = F.one_hot(io["in_label"], classes).float()
    mixed = mix_targets(score, score[io["in_mixup_perm"]], float(io["in_mixup_lam"]))
    torch.testing.assert_close(mixed, io["out_mixup_score"], **case["tolerance"])


@found("mfm_official/recipes")
def test_targets_of_mfm(folder):
    case, io = load_case(folder)
    one_hot = F.one_hot(io["in_ft_labels"], io["in_ft_logits"].shape[1]).float()
    mixed = mix_targets(one_hot, one_hot[PARTNERS["reverse"](len(one_hot))], float(io["in_ft_lambda"]))
    recipes = case["config"]["recipes"]
    amount = next(r["merged_config"]["MODEL"]["LABEL_SMOOTHING"] for name, r in recipes.items() if "finetune" in name)
    target = smooth_labels(mixed, amount)
    torch.testing.assert_close(target, io["out_ft_targets"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(soft_cross_entropy(io["in_ft_logits"], target), io["out_ft_loss"], rtol=1e-5, atol=1e-6)


def test_hard_labels_of_bce_are_one_hot():
    logits, labels = torch.randn(4, 5), torch.tensor([0, 4, 2, 2])
    assert torch.equal(binary_cross_entropy(logits, labels), binary_cross_entropy(logits, F.one_hot(labels, 5).float()))
    assert CLASS_LOSSES.get("bce") is binary_cross_entropy


def images(size=6):
    return torch.arange(size * 3 * 10 * 14, dtype=torch.float32).reshape(size, 3, 10, 14)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_mixup_is_timms(smoothing):
    """Draws, images and targets of the same seed; CutMix's draws, too, and its true share of the labels."""
    labels = torch.tensor([0, 1, 2, 3, 4, 0])
    one_hot = F.one_hot(labels, 5).float()
    cut = 0
    for seed in range(20):
        np.random.seed(seed)
        inputs, target = Mixup(0.8, 1.0, label_smoothing=smoothing, num_classes=5)(images(), labels)
        state = np.random.get_state()[2]
        np.random.seed(seed)
        ours, mixed = Mixer(0.8, 1.0)(images(), one_hot)
        assert np.random.get_state()[2] == state
        changed = ours != images()
        if changed.all():
            torch.testing.assert_close(ours, inputs)
            torch.testing.assert_close(smooth_labels(mixed, smoothing), target)
            continue
        cut += 1
        theirs = inputs != images()
        assert not (changed & ~theirs).any()  # newer timm's box has one row or column more where its side is odd
        share = 1 - changed[0, 0].float().mean()
        torch.testing.assert_close(mixed, share * one_hot + (1 - share) * one_hot.flip(0))
        assert torch.equal(ours[changed], images().flip(0)[changed])
    assert 4 < cut < 16


def test_probabilities_are_those_that_the_loss_is_of():
    logits, target = torch.randn(4, 5), torch.randint(5, (4,))
    softmax, sigmoid = (probabilities(logits, name) for name in ("soft_cross_entropy", "bce"))
    torch.testing.assert_close(-softmax.gather(1, target[:, None]).log().mean(), soft_cross_entropy(logits, target))
    one_hot = F.one_hot(target, 5).bool()
    expected = -torch.where(one_hot, sigmoid, 1 - sigmoid).log().mean()
    torch.testing.assert_close(expected, binary_cross_entropy(logits, target))


def test_cutmix_cuts_what_its_authors_cut():
    """The whole box, and one clipped by a corner, with a side of odd length rounded down to an even one."""
    assert cut_box(0.75, (20, 30), 40, 60) == (10, 30, 15, 45)
    assert cut_box(0.5, (0, 15), 16, 20) == (0, 5, 8, 20)
    assert kept_share((0, 5, 8, 20), 16, 20) == 1 - 60 / 320


def test_a_batch_may_stay_as_it_is_and_one_alone_is_enough():
    one_hot = torch.eye(6)
    for mixer, seen in ((Mixer(1.0, 1.0, prob=0.0), {False}), (Mixer(1.0, 0.0, prob=0.5), {False, True})):
        np.random.seed(0)
        assert {bool((mixer(images(), one_hot)[0] != images()).any()) for _ in range(20)} == seen
    mixer = Mixer(0.0, 1.0)
    assert all(mixer(images(), one_hot)[0].eq(images()).any() for _ in range(20))  # CutMix leaves pixels alone


@pytest.mark.parametrize("partner, order", [("reverse", [4, 3, 2, 1, 0]), ("next", [4, 0, 1, 2, 3])])
def test_partners(partner, order):
    np.random.seed(0)
    mixed, target = Mixer(1.0, 0.0, partner=partner)(images(5), torch.eye(5))
    share = float(target[0, 0])
    assert target[0, order[0]] == pytest.approx(1 - share) if order[0] else share == 1
    torch.testing.assert_close(mixed, images(5) * share + images(5)[order] * (1 - share))
    torch.testing.assert_close(target, share * torch.eye(5) + (1 - share) * torch.eye(5)[order])


@pytest.mark.parametrize("alphas", [(8.0, 0.0), (0.0, 8.0)])
def test_random_partners(alphas):
    """mmpretrain's: one permutation for images and targets, another one in each batch, the same for the same seed."""
    orders = []
    for seed in (0, 0, 1):
        np.random.seed(1)
        torch.manual_seed(seed)
        mixed, target = Mixer(*alphas, partner="random")(images(), torch.eye(6))
        torch.manual_seed(seed)
        order = torch.randperm(6)
        share = float(target.diagonal().min())  # that of an image drawn for itself is 1
        torch.testing.assert_close(target, share * torch.eye(6) + (1 - share) * torch.eye(6)[order])
        if alphas[0]:
            torch.testing.assert_close(mixed, images() * share + images()[order] * (1 - share))
        else:
            changed = mixed != images()
            assert changed.any() and torch.equal(mixed[changed], images()[order][changed])
        orders.append(order.tolist())
    assert orders[0] == orders[1] != orders[2]
