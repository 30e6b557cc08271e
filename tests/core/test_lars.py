"""LARS against MAE's, and what it owes the run: a held-back step, resuming, one learning rate per group."""

from __future__ import annotations

import copy
from functools import partial
from operator import mul

import pytest
import torch
from golden_cases import cases, load_case

from mfm_core.optim.build import follow
from mfm_core.optim.lars import LARS


@pytest.mark.parametrize("folder", cases("mae/lars"), ids=lambda p: p.name)
def test_golden(folder):
    case, io = load_case(folder)
    config = case["config"]
    names = [name for group in config["groups"] for name in group["names"]]
    parameters = {name: torch.nn.Parameter(io[f"in_param_{name}"].clone()) for name in names}
    groups = [
        {"params": [parameters[n] for n in group["names"]], **{k: group[k] for k in ("weight_decay", "momentum")}}
        for group in config["groups"]
    ]
    optimizer = LARS(groups, lr=1.0, trust_coefficient=config["trust_coefficient"])
    for group in optimizer.param_groups:
        group["lr_scale"] = 1.0
    for step, lr in enumerate(config["lr_per_step"]):
        follow(optimizer, partial(mul, lr))
        for name, parameter in parameters.items():
            parameter.grad = io.get(f"in_grad_step{step}_{name}")
            absent = step in config["grad_is_none_at_steps"].get(name, [])
            assert (parameter.grad is None) == absent
        optimizer.step()
        for name, parameter in parameters.items():
            expected = io[f"out_param_step{step}_{name}"]
            torch.testing.assert_close(parameter.detach(), expected, **case["tolerance"], msg=f"{name}, step {step}")
    for name, parameter in parameters.items():
        buffer = optimizer.state[parameter]["momentum_buffer"]
        torch.testing.assert_close(buffer, io[f"out_buffer_final_{name}"], **case["tolerance"])


def model_and_optimizer(seed=0, **options):
    torch.manual_seed(seed)
    model = torch.nn.Linear(5, 3)
    return model, LARS(model.parameters(), lr=0.5, **options)


def backward(model, scale=1.0):
    generator = torch.Generator().manual_seed(7)
    model.zero_grad()
    (scale * model(torch.randn(4, 5, generator=generator)).square().sum()).backward()


@pytest.mark.parametrize("first", [True, False], ids=["first step", "later step"])
def test_a_step_with_a_fault_changes_nothing(first):
    model, optimizer = model_and_optimizer()
    if not first:
        backward(model)
        optimizer.step()
    weights, buffers = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict()["state"])
    backward(model, scale=float("nan"))
    optimizer.found_inf = torch.tensor(1.0)
    optimizer.step()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, weights[name])
    for key, slots in optimizer.state_dict()["state"].items():
        before = buffers[key]["momentum_buffer"] if buffers else torch.zeros_like(slots["momentum_buffer"])
        assert torch.equal(slots["momentum_buffer"], before)

    other, plain = model_and_optimizer()
    if not first:
        backward(other)
        plain.step()
    for one, its in ((model, optimizer), (other, plain)):
        its.found_inf = torch.tensor(0.0)
        backward(one)
        its.step()
    assert torch.equal(model.weight, other.weight) and torch.equal(model.bias, other.bias)


def test_resuming_goes_on_as_if_nothing_had_been():
    model, optimizer = model_and_optimizer(weight_decay=0.01)
    for _ in range(3):
        backward(model)
        optimizer.step()
    other, fresh = model_and_optimizer(seed=1, weight_decay=0.01)
    other.load_state_dict(model.state_dict())
    fresh.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for one, its in ((model, optimizer), (other, fresh)):
        backward(one)
        its.step()
    assert torch.equal(model.weight, other.weight) and torch.equal(model.bias, other.bias)


def test_biases_are_adapted_on_request_only():
    for adapt in (False, True):
        model, optimizer = model_and_optimizer(adapt_1d=adapt, momentum=0.0)
        backward(model)
        bias, gradient = model.bias.detach().clone(), model.bias.grad.clone()
        optimizer.step()
        trust = 0.001 * bias.norm() / gradient.norm() if adapt else 1.0
        torch.testing.assert_close(model.bias.detach(), bias - 0.5 * trust * gradient)
