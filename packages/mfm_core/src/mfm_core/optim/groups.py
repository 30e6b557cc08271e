"""Parameter groups: layer-wise learning-rate decay, and which parameters are spared weight decay.

Layer decay as in ELECTRA and BEiT (Clark et al. 2020, Bao et al. 2021). The depth of a parameter and the names that
are spared are the model's to say (`layer_of`, `no_weight_decay`); nothing is matched by substring.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from torch import nn


def parameter_groups(
    model: nn.Module,
    weight_decay: float,
    *,
    no_decay_names: Collection[str] = (),
    no_decay_1d: bool = True,
    layer_decay: float = 1.0,
    layer_of: Callable[[str], int] | None = None,
    num_layers: int = 0,
    lr_scale: Callable[[str], float] | None = None,
) -> list[dict]:
    """One group for each (learning-rate scale, weight decay), in order of first use.

    `no_decay_1d` spares tensors of one dimension and names ending in ".bias"; `no_decay_names` are exact.
    Layers run from 0 (embeddings) to `num_layers` (head); layer i has scale layer_decay^(num_layers - i).
    `lr_scale` multiplies that by a scale of each name's own.
    Frozen parameters belong to no group. Each group: params, names, lr_scale, weight_decay.
    """
    unknown = set(no_decay_names) - {name for name, _ in model.named_parameters()}
    if unknown:
        raise ValueError(f"no_decay_names that the model lacks: {sorted(unknown)}")
    groups: dict[tuple[float, float], dict] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        spared = name in no_decay_names or (no_decay_1d and (parameter.ndim <= 1 or name.endswith(".bias")))
        decay = 0.0 if spared else weight_decay
        scale = layer_decay ** (num_layers - layer_of(name)) if layer_of and layer_decay < 1.0 else 1.0
        scale *= lr_scale(name) if lr_scale else 1.0
        group = groups.setdefault((scale, decay), {"params": [], "names": [], "lr_scale": scale, "weight_decay": decay})
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())
