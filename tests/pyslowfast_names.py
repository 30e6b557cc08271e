"""The inverse of the tables that PySlowFast's checkpoints of classifiers and MaskFeat are read with."""

from __future__ import annotations


def pyslowfast_name(name: str) -> str:
    """Our name of a parameter as PySlowFast calls it."""
    if name.startswith("head.norm."):
        return name.removeprefix("head.")
    if name.startswith(("head.transforms.", "head.projections.")):
        return f"pred_{name}"
    if name.startswith("backbone.pos_embed."):
        return "pos_embed_" + name.rpartition(".")[2].replace("cls", "class")
    return name.removeprefix("backbone.").removeprefix("corruption.")
