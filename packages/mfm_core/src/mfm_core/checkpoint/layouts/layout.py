"""How a project's parameter names read in ours: a table of beginnings, and of parts inside the names."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

Names = set[str]
Table = tuple[tuple[str, str | None], ...]


@dataclass(frozen=True)
class Layout:
    """A released layout.

    matches: whether these names are of it. prefixes: theirs -> ours; "x." stands for all names that begin so, "x" for
    itself, "" for all; None marks constants that are no weights. inside: parts replaced in what the prefixes gave.

    The encoder's final norm has two lives. token_norm: our name of the norm that the encoder ends with, which a
    read-out of normalised tokens takes over; "" where the project starts that one afresh. pooled_norm: our name of the
    norm after mean pooling. Where both are "", a classifier's norm is `head.norm` whatever it reads.

    note: what whoever loads it should know of the numbers that come out, "" for nothing.
    """

    name: str
    matches: Callable[[Names], bool]
    prefixes: Table
    inside: tuple[tuple[str, str], ...] = ()
    token_norm: str = ""
    pooled_norm: str = ""
    note: str = ""

    def to_ours(self, names: Iterable[str]) -> dict[str, str | None]:
        """Each name with ours, the first matching prefix counting; without constants, None for names of no row."""
        ours: dict[str, str | None] = {}
        for name in names:
            row = next((row for row in self.prefixes if _begins(name, row[0])), None)
            if row is None:
                ours[name] = None
            elif row[1] is not None:
                ours[name] = self._inside(row[1] + name[len(row[0]) :])
        return ours

    def _inside(self, name: str) -> str:
        for theirs, mine in self.inside:
            name = name.replace(theirs, mine)
        return name


def _begins(name: str, beginning: str) -> bool:
    return name == beginning or (not beginning or beginning.endswith(".")) and name.startswith(beginning)


def vit_encoder(prefix: str = "") -> Table:
    """The rows of an encoder with timm's names under `prefix`; its final norm is not among them."""
    return tuple((prefix + name, f"backbone.{name}") for name in ("cls_token", "pos_embed", "patch_embed.", "blocks."))


def resnet_encoder(prefix: str = "") -> Table:
    """The rows of a ResNet with torchvision's names under `prefix`."""
    stages = (f"layer{i}." for i in (1, 2, 3, 4))
    return tuple((prefix + name, f"backbone.{name}") for name in ("conv1.", "bn1.", *stages))


def has(names: Names, beginning: str) -> bool:
    """Whether a name begins so."""
    return any(name.startswith(beginning) for name in names)


LAYER_SCALE = ((".gamma_1", ".ls1.gamma"), (".gamma_2", ".ls2.gamma"))
"""BEiT's names of the layer scales, which MAE-priv and MFM keep."""
