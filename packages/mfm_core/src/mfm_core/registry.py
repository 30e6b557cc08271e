"""Registries with names that help: one per role, over fvcore's, whose lookup error suggests the nearest name."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from fvcore.common.registry import Registry as _Registry

from mfm_core.errors import UserError

T = TypeVar("T")


def suggest(name: str, known: Iterable[str]) -> str:
    """`" Did you mean X?"`, or the list of what there is when nothing is near; a tail for error messages."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if near:
        return f" Did you mean {near[0]}?"
    return f" There are: {', '.join(known)}." if len(known) <= 12 else ""


class Registry(_Registry):
    """fvcore's registry; `get` raises `UserError` with a suggestion, and `key` names the config key that chose."""

    def __init__(self, role: str, key: str) -> None:
        super().__init__(role)
        self.key = key

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator: registers an object as `name` (fvcore takes the object's own name)."""

        def add(thing: T) -> T:
            self._do_register(name, thing)
            return thing

        return add

    def get(self, name: str) -> Any:
        """The object registered as `name`; raises `UserError` where there is none."""
        if name not in self:
            raise UserError(f"{self.key}: no {self._name} is called '{name}'.{suggest(name, (k for k, _ in self))}")
        return super().get(name)
