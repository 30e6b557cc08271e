"""Numbers that a run gives for several settings at once (learning rates, k, …), found by their names and tabulated.

Such a number is called `measure/setting_value`, for example `top1/lr_0.1` or `knn/k_20`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

_NAME = re.compile(r"([^/]+)/([a-z]+)_([^/]+)")
TITLES = {
    "lr": "learning rate",
    "k": "k",
    "top1": "top-1",
    "top5": "top-5",
    "knn": "top-1",
    "knn_top5": "top-5",
    "val_loss": "validation loss",
    "resize": "short side, pixels",
    "clips": "clips of a video",
    "fusion_weight": "fusion weight",
}
"""What settings and measures are called in tables; others keep their names."""


@dataclass(frozen=True)
class SettingTable:
    """A row for each value of a setting, a column for each measure; None where there is no number."""

    setting: str
    measures: tuple[str, ...]
    rows: tuple[tuple[str, tuple[float | None, ...]], ...]

    def head(self) -> list[str]:
        """The titles of the columns."""
        return [title_of(name) for name in (self.setting, *self.measures)]

    def cells(self) -> list[list[str]]:
        """The rows as text."""
        return [[value, *("–" if n is None else f"{n:.4g}" for n in numbers)] for value, numbers in self.rows]

    def lines(self) -> list[str]:
        """The table as lines of equal width, for a terminal."""
        rows = [self.head(), *self.cells()]
        widths = [max(map(len, column)) for column in zip(*rows)]
        return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths)) for row in rows]


def title_of(name: str) -> str:
    """What a setting or a measure is called for people."""
    return TITLES.get(name, name)


def setting_name(measure: str, setting: str, value: float | int) -> str:
    """What the number `measure` is called where `setting` (lower-case letters) is `value`."""
    return f"{measure}/{setting}_{value:g}"


def split_name(name: str) -> tuple[str, str, str] | None:
    """(measure, setting, value) of such a name; None for any other."""
    match = _NAME.fullmatch(name)
    return match.groups() if match else None


def setting_tables(values: Mapping[str, float | None]) -> list[SettingTable]:
    """The tables that are among `values`, one for each setting, rows and columns in the order of their coming."""
    found = {name: parts for name in values if (parts := split_name(name))}
    return [_table(setting, values, found) for setting in _in_order(s for _, s, _ in found.values())]


def _table(setting: str, values: Mapping[str, float | None], found: dict[str, tuple[str, str, str]]) -> SettingTable:
    own = {(measure, value): values[name] for name, (measure, s, value) in found.items() if s == setting}
    measures = _in_order(measure for measure, _ in own)
    rows = _in_order(value for _, value in own)
    return SettingTable(setting, measures, tuple((row, tuple(own.get((m, row)) for m in measures)) for row in rows))


def _in_order(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))
