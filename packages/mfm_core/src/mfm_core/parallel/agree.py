"""How the processes of a run find out that one of them cannot go on, or would do something else than the others.

What they have not agreed about shows later and worse: as a wait for a process that never calls, or not at all.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from mfm_core.errors import MOST_NAMED, UserError, named
from mfm_core.parallel.world import World

T = TypeVar("T")


def together(action: Callable[[], T], world: World) -> T:
    """What `action` returns, once all processes have come through theirs. All call.

    action: must not wait for other processes. Raises UserError on all of them where it does on one; the line says on
    which, unless the main one has that problem, too.
    """
    if world.size == 1:
        return action()
    result, problem = None, None
    try:
        result = action()
    except UserError as error:
        problem = str(error)
    found = [(rank, problem) for rank, problem in enumerate(world.gather(problem)) if problem is not None]
    if found:
        rank, problem = found[0]
        raise UserError(f"Process {rank} of {world.size}: {problem}" if rank else problem)
    return result


def wait_for_main(world: World) -> None:
    """Returns when all have come here, or where that takes longer than DIST.TIMEOUT: nothing is left to agree about.

    Launchers end all processes soon after the first has left.
    """
    with suppress(RuntimeError):
        world.barrier()


def require_alike(facts: dict[str, str], world: World, problem: str, remedy: str) -> None:
    """Raises UserError, on all processes, where they pass in different facts. All call.

    facts: values by their names. The line is the problem, what differs where, and the remedy.
    """
    digest = hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=16).hexdigest()
    if len(set(world.gather(digest))) == 1:
        return
    everyone = world.gather(facts)
    names = dict.fromkeys(name for own in everyone for name in own)
    differences = [_difference(name, everyone) for name in names if len({own.get(name) for own in everyone}) > 1]
    raise UserError(f"{problem} ({named(differences)}); {remedy}.")


def counted(number: int, content: bytes) -> str:
    """How many things there are, and a digest of which, as a fact to compare."""
    return f"{number} (digest {hashlib.blake2b(content, digest_size=6).hexdigest()})" if number else "none"


def _difference(name: str, everyone: list[dict[str, str]]) -> str:
    """Each value that a fact has, on the first process that has it."""
    values: dict[str, int] = {}
    for rank, facts in enumerate(everyone):
        values.setdefault(facts.get(name, "none"), rank)
    found = [f"{value or repr(value)} on process {rank}" for value, rank in values.items()]
    return f"{name}: {', '.join(found[:MOST_NAMED])}"
