"""What released checkpoints hold beside tensors, and what is read in its place.

MAE and MAE-priv save the arguments of the run (`argparse.Namespace`), MFM its configuration (yacs), mmengine its meters
(numpy). torch's restricted unpickler refuses such objects, for making them could run code. Here each of these names
stands for a class that takes whatever a file says of an object and forgets it, so that nothing of theirs is called; of
any other name the unpickler refuses the whole file, as before.
"""

from __future__ import annotations

from collections import OrderedDict
from contextlib import AbstractContextManager

from torch.serialization import safe_globals


class Forgotten:
    """An object of a checkpoint that nobody reads: made of anything, it keeps nothing."""

    def __init__(self, *arguments: object) -> None:
        """Called in the place of the object's own constructor or function."""

    def __setstate__(self, state: object) -> None:
        """Called in the place of the object's own."""


_FORGOTTEN = (
    "argparse.Namespace",
    "pathlib.PosixPath",
    "pathlib.WindowsPath",
    "pathlib._local.PosixPath",
    "pathlib._local.WindowsPath",
    "numpy.dtype",
    "numpy.ndarray",
    *(f"numpy.{core}.multiarray.{function}" for core in ("core", "_core") for function in ("scalar", "_reconstruct")),
    "mmengine.logging.history_buffer.HistoryBuffer",
)
_DICTIONARIES = ("yacs.config.CfgNode", "fvcore.common.config.CfgNode")


def known_objects() -> AbstractContextManager:
    """Within it, `torch.load(weights_only=True)` reads these names as their stand-ins, and no others."""
    objects = [(Forgotten, name) for name in _FORGOTTEN]
    return safe_globals(objects + [(OrderedDict, name) for name in _DICTIONARIES])
