"""How PySlowFast starts a model: the note of its golden model sizes, in numbers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

TABLES = ("cls_token", "pos_embed", "rel_pos", "mask_token")


def assert_normal(values: Tensor, name: str, std: float = 0.02) -> None:
    """Drawn from a normal distribution around zero: mean and deviation within five standard errors.

    One in 16 million of what torch's `trunc_normal_` draws is the bound itself, -2: those are no part of the deviation.
    """
    values = values.detach().double().flatten()
    bound = values.abs() > 10 * std
    assert int(bound.sum()) <= 3 and (values[bound] == -2).all(), name
    values, error = values[~bound], std / values.numel() ** 0.5
    assert abs(float(values.mean())) < 5 * error, name
    assert float(values.std()) == pytest.approx(std, abs=5 * error / 2**0.5), name
    assert len(values) < 5000 or float(values.abs().max()) > 3 * std, name


def assert_constant(values: Tensor | None, value: float, name: str) -> None:
    assert values is None or torch.equal(values.detach(), torch.full_like(values, value)), name


def check_start(part: nn.Module, bias: float) -> None:
    """Weights of linear layers and convolutions and all tables: normal with 0.02. Norms: 1. Biases, theirs too: `bias`.

    (PySlowFast leaves the bias of the patch projection to torch, which draws it from +-0.05; here it is `bias`, too.)
    """
    kinds, named = (nn.Linear, nn.Conv2d, nn.Conv3d), 0
    for name, module in part.named_modules():
        if isinstance(module, kinds):
            assert_normal(module.weight, name)
            assert_constant(module.bias, bias, name)
            named += 1
        elif isinstance(module, nn.LayerNorm):
            assert_constant(module.weight, 1.0, name)
            assert_constant(module.bias, bias, name)
        named_here = dict(module.named_parameters(recurse=False))
        for leaf, table in named_here.items():
            if not isinstance(module, (*kinds, nn.LayerNorm)):
                assert any(kind in f"{name}.{leaf}" for kind in TABLES), f"{name}.{leaf} starts as nobody says"
                assert_normal(table, f"{name}.{leaf}")
    assert named


def check_classifier(head: nn.Module, scale: float) -> None:
    """A norm of 1 and 0.02 and a projection that is made `scale` times smaller, its bias with it."""
    assert_constant(head.norm.weight, 1.0, "norm")
    assert_constant(head.norm.bias, 0.02, "norm")
    assert_normal(head.projection.weight, "projection", 0.02 * scale)
    torch.testing.assert_close(head.projection.bias.detach(), torch.full_like(head.projection.bias, 0.02 * scale))
