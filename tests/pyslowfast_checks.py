"""What PySlowFast's golden cases record of training: gradients of each parameter, optimizer steps, parameter groups."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
from pyslowfast_names import pyslowfast_name
from torch import Tensor, nn

from mfm_core.optim.build import build_optimizer, follow
from mfm_core.parallel.strategy import Single
from mfm_core.parallel.world import World


def check_gradients(model: nn.Module, case: dict, names: Mapping[str, str] | None = None) -> None:
    """The norm of each parameter's gradient; `names`: ours to the released ones, where these are no other layout's."""
    tolerance, parameters = case["tolerance"], dict(model.named_parameters())
    for name, parameter in parameters.items():
        expected = case["grad_norms"][names[name] if names else pyslowfast_name(name)]
        close = pytest.approx(expected, rel=tolerance["grad_norm_rtol"], abs=tolerance["grad_norm_atol"])
        assert float(parameter.grad.norm()) == close, name
    assert len(case["grad_norms"]) == len(parameters)


def check_steps(model: nn.Module, cfg, case: dict, io: dict[str, Tensor], loss_of: Callable[[], Tensor]) -> None:
    """Losses before, between and after the case's optimizer steps, and gradient norms before clipping."""
    steps = case["config"]["train_steps"]
    optimizer, strategy = build_optimizer(model, cfg), Single(World())
    follow(optimizer, lambda scale: scale * steps["lr"])
    losses, norms = [], []
    for _ in range(steps["n"]):
        optimizer.zero_grad()
        loss = loss_of()
        loss.backward()
        losses.append(loss.item())
        norms.append(strategy.clip(optimizer, steps["clip_grad_l2norm"], None).item())
        optimizer.step()
    losses.append(loss_of().item())
    rtol = case["tolerance"]["step_loss_rtol"]
    torch.testing.assert_close(torch.tensor(losses), io["out_step_losses"], rtol=rtol, atol=0)
    torch.testing.assert_close(torch.tensor(norms), io["out_step_grad_norms"], rtol=rtol, atol=0)


def check_groups(model: nn.Module, cfg, entry: dict, rtol: float, names: Mapping[str, str] | None = None) -> None:
    """Learning-rate scale and weight decay of each parameter, and the number of groups; names: as above."""
    optimizer = build_optimizer(model, cfg)
    ours = {
        (names[parameter] if names else pyslowfast_name(parameter)): (group["lr_scale"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["names"]
    }
    column = {title: i for i, title in enumerate(entry["columns"])}
    theirs = {row[column["name"]]: (row[column["lr_scale"]], row[column["weight_decay"]]) for row in entry["rows"]}
    assert ours.keys() == theirs.keys()
    for parameter, expected in theirs.items():
        assert ours[parameter] == pytest.approx(expected, rel=rtol), parameter
    assert len(optimizer.param_groups) == entry["num_groups"]
