"""Signals that ask a run to save and leave, and the exit code that says that it has.

SIGTERM is what a pre-empted job gets, SIGUSR1 or SIGUSR2 what `sbatch --signal` sends before the time limit. The
handler sets a flag and no more, for it may run in the middle of a step, or of a line of the log.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
EXIT_AGAIN = 75
"""A run's exit code where a signal stopped it before its end and it has saved: start it again with the same command
(EX_TEMPFAIL of sysexits.h)."""

_asked = False


@contextmanager
def listening() -> Iterator[None]:
    """Inside, `SIGNALS` set a flag instead of ending the process; one that should have ended it before has set it."""
    global _asked
    previous = {number: signal.signal(number, _ask) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        _asked = False


def leave_until_listening() -> None:
    """From here on `SIGNALS` end the process with EXIT_AGAIN: there is nothing to save yet, and all is to be done."""
    for number in SIGNALS:
        signal.signal(number, _leave)


def _leave(signum: int, frame: object) -> None:
    global _asked
    _asked = True  # some module that is being imported may catch what comes now
    sys.exit(EXIT_AGAIN)


def _ask(signum: int, frame: object) -> None:
    global _asked
    _asked = True


def asked() -> bool:
    """Whether this process has been told to stop."""
    return _asked
