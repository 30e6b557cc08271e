"""What a rule of `idle.py` is made of."""

from __future__ import annotations

from collections.abc import Callable

from fvcore.common.config import CfgNode

Rule = tuple[Callable[[CfgNode], bool], str, tuple[str, ...]]
"""(condition, why, keys): where the condition holds, the keys cannot act."""
