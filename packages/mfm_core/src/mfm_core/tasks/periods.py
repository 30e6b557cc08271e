"""When something that happens every few epochs happens."""

from __future__ import annotations


def is_due(epoch: int, period: int, last: bool) -> bool:
    """Whether something that happens every `period` epochs (0: never), and after the last, happens after `epoch`."""
    return period > 0 and (last or epoch % period == 0)
