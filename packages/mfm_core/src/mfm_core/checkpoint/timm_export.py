"""Our weights under timm's names, and how timm builds the model that takes them (Wightman, `timm`)."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import timm
import torch

from mfm_core.checkpoint.formats import State
from mfm_core.errors import UserError

SIZES = {
    # width, depth, heads
    (192, 12, 3): "tiny",
    (384, 12, 6): "small",
    (768, 12, 12): "base",
    (1024, 24, 16): "large",
    (1280, 32, 16): "huge",
}
RESNETS = {(3, 4, 6, 3): "resnet50", (3, 4, 23, 3): "resnet101", (3, 8, 36, 3): "resnet152"}
_LAST_NORM = re.compile(r"head\.transforms\.(\d+)\.0\.weight")


@dataclass
class TimmModel:
    """`timm.create_model(name, checkpoint_path=…, **arguments)` loads `state` strictly. left_out: what it lacks."""

    name: str
    state: State
    arguments: dict[str, Any] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    def call(self, path: str) -> str:
        """The line of Python that loads the weights from `path`."""
        options = "".join(f", {key}={value!r}" for key, value in self.arguments.items())
        return f"timm.create_model({self.name!r}, checkpoint_path={path!r}{options})"


@dataclass(frozen=True)
class ViTFacts:
    """What the tensors of a ViT do not tell. size: side of the images, pixels."""

    size: int
    num_heads: int
    patch_stride: tuple[int, int]
    mean_pooling: bool


def to_timm(state: State, facts: ViTFacts, path: str) -> TimmModel:
    """The encoder and, where there is one, the classifier on it. `facts` matter for ViTs only.

    Raises UserError, naming `path`, for a model that timm has not.
    """
    names = {n.removeprefix("backbone."): t for n, t in state.items() if n.startswith("backbone.")}
    if "conv1.weight" in names:
        model, classifier, moved = _resnet(names, path), "fc", {}
    elif "patch_embed.proj.weight" in names and names["patch_embed.proj.weight"].ndim == 4:
        model, classifier = _vit(names, facts, path), "head"
        moved = _norm(state, facts.mean_pooling, model.arguments)
    else:
        raise UserError(f"{path} holds neither a ViT nor a ResNet for images, and timm has no other of our models.")
    if "head.projection.weight" in state and "head.embed.weight" not in state:  # with it, a decoder's prediction
        moved |= {f"head.projection.{part}": f"{classifier}.{part}" for part in ("weight", "bias")}
    model.arguments["num_classes"] = len(state["head.projection.weight"]) if "head.projection.weight" in moved else 0
    model.state |= {theirs: state[ours] for ours, theirs in moved.items()}
    model.left_out = [name for name in state if not name.startswith("backbone.") and name not in moved]
    return model


def _norm(state: State, mean_pooling: bool, arguments: dict[str, Any]) -> dict[str, str]:
    """Our names of the final norm with timm's, which depend on the read-out; sets the arguments that say so."""
    prefix, pooled = _final_norm(state, mean_pooling)
    if pooled or "class_token" in arguments:
        arguments["global_pool"] = "avg"
    if "class_token" in arguments and not pooled:
        arguments["fc_norm"] = False
    if not prefix:
        arguments["final_norm"] = False
        return {}
    return {f"{prefix}{part}": f"{'fc_norm' if pooled else 'norm'}.{part}" for part in ("weight", "bias")}


def _final_norm(state: State, mean_pooling: bool) -> tuple[str, bool]:
    """Where the norm behind the last block is, "" for nowhere, and whether it stands behind the mean.

    Of a pre-trained encoder it is the norm before the decoder or, of several predictions, before the last.
    """
    if "head.encoder_norm.weight" in state:
        return "head.encoder_norm.", False
    depths = [int(match[1]) for match in map(_LAST_NORM.fullmatch, state) if match]
    if depths:
        return f"head.transforms.{max(depths)}.0.", False
    return ("head.norm.", mean_pooling) if "head.norm.weight" in state else ("", False)


def _vit(names: State, facts: ViTFacts, path: str) -> TimmModel:
    width, _, *patch = names["patch_embed.proj.weight"].shape
    if tuple(patch) != tuple(facts.patch_stride) or facts.size % patch[0] or patch[0] != patch[1]:
        raise UserError(f"{path}: its patches {patch} overlap or do not fill the image; timm's are square tiles.")
    depth = 1 + max(int(n.split(".")[1]) for n in names if n.startswith("blocks."))
    size = SIZES.get((width, depth, facts.num_heads))
    name = f"vit_{size}_patch{patch[0]}_224"
    hidden = names["blocks.0.mlp.fc1.weight"].shape[0]
    arguments: dict[str, Any] = {}
    if size is None or not timm.is_model(name):
        name = "vit_base_patch16_224"
        arguments = {"embed_dim": width, "depth": depth, "num_heads": facts.num_heads, "patch_size": patch[0]}
    state = _join_biases(names)
    for key, value, usual in (
        ("img_size", facts.size, 224),
        ("mlp_ratio", hidden / width, 4.0),
        ("qkv_bias", "blocks.0.attn.qkv.bias" in state, True),
        ("class_token", "cls_token" in names, True),
        ("pos_embed", "learn" if "pos_embed" in names else "none", "learn"),
        ("init_values", 1e-5 if "blocks.0.ls1.gamma" in names else None, None),
    ):
        if value != usual:
            arguments[key] = value
    return TimmModel(name, state, arguments)


def _join_biases(names: State) -> State:
    """Query and value biases as one, with zeros for the keys, which have no effect."""
    state = {}
    for name, tensor in names.items():
        if name.endswith(".attn.q_bias"):
            value = names[name.replace("q_bias", "v_bias")]
            state[name.replace("q_bias", "qkv.bias")] = torch.cat([tensor, torch.zeros_like(tensor), value])
        elif not name.endswith(".attn.v_bias"):
            state[name] = tensor
    return state


def _resnet(names: State, path: str) -> TimmModel:
    blocks = tuple(len({n.split(".")[1] for n in names if n.startswith(f"layer{i}.")}) for i in (1, 2, 3, 4))
    if blocks not in RESNETS or names["conv1.weight"].shape[0] != 64 or names["layer1.0.conv1.weight"].shape[0] != 64:
        raise UserError(f"{path}: timm has no ResNet of this width with {blocks} blocks in its stages.")
    return TimmModel(RESNETS[blocks], dict(names))
