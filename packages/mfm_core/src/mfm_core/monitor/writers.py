"""Where a run's numbers go: a file of JSON lines, TensorBoard, and the line on the terminal."""

from __future__ import annotations

import errno
import json
import math
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from os import PathLike
from pathlib import Path
from typing import IO, Any

import numpy as np

from mfm_core.errors import UserError


class JsonLines:
    """Appends one JSON object per line, each at once, so that a killed run loses at most the line being written.

    NaN and infinities become `null`, because JSON has neither. A last line torn by a kill is mended on opening:
    completed with its newline where it is whole, cut off where it is not.
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        """Opens `path` for appending, making its folder; raises `UserError` where that cannot be done."""
        self.path = Path(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            _mend_last_line(self.path)
            self._file: IO[bytes] = self.path.open("ab", buffering=0)  # what a full disk refuses must not come later
        except OSError as error:
            raise UserError(
                f"{self.path}: the log cannot be written ({error.strerror}); choose another OUTPUT_DIR"
            ) from error

    def write(self, record: Mapping[str, Any]) -> None:
        """Appends `record`. Tensors and arrays of one element are read as numbers (which waits for the device).

        Raises `UserError` where the disk is full; nothing of the record is in the file then.
        """
        line = (json.dumps(_plain(record), allow_nan=False) + "\n").encode()
        before = os.fstat(self._file.fileno()).st_size
        try:
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            with suppress(OSError):  # a device has no length
                os.ftruncate(self._file.fileno(), before)
            raise UserError(f"{self.path}: the log cannot be written ({error.strerror}); free the disk") from None

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> JsonLines:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class TensorBoard:
    """TensorBoard's event file of a run; imported only when one is opened.

    All methods raise `UserError` where the disk does not take it. `reopen` starts another file then. No folder is taken
    whose name is not UTF-8: TensorBoard encodes it so.
    """

    def __init__(self, folder: str | PathLike[str], purge_step: int | None = None) -> None:
        """Writes under `folder`. `purge_step`: a resumed run hides what an earlier one wrote from this step on."""
        self.folder = str(folder)
        self._open(purge_step)

    def _open(self, purge_step: int | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        _keep_threads_quiet()
        with self._disk():
            self._writer = SummaryWriter(self.folder, purge_step=purge_step)

    @contextmanager
    def _disk(self) -> Iterator[None]:
        """TensorBoard writes in a thread of its own; what goes wrong there comes back at some later call."""
        try:
            yield
        except OSError as error:
            raise UserError(f"{self.folder}: TensorBoard cannot write there ({error.strerror or error})") from None
        except UnicodeEncodeError:
            why = "TensorBoard writes to no folder whose name is not UTF-8 in this locale"
            raise UserError(f"{self.folder}: {why}; choose another OUTPUT_DIR") from None

    def scalars(self, step: int, values: Mapping[str, Any], prefix: str = "") -> None:
        """Writes the numbers among `values` at `step` as `prefix/name`; `None` and text are left out."""
        for name, value in values.items():
            value = _plain(value, keep_nan=True)
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                with self._disk():
                    self._writer.add_scalar(f"{prefix}/{name}" if prefix else name, value, step)

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Writes `image` (H, W, 3) or (H, W, 4) uint8."""
        with self._disk():
            self._writer.add_image(name, image, step, dataformats="HWC")

    def reopen(self) -> None:
        """Goes on in a new file, after an error; TensorBoard shows both as one."""
        with suppress(UserError):
            self.close()
        self._open(None)

    def close(self) -> None:
        with self._disk():
            self._writer.close()


def _keep_threads_quiet() -> None:
    """TensorBoard's thread raises to the terminal what its next call raises again."""
    before = threading.excepthook

    def hook(arguments: threading.ExceptHookArgs) -> None:
        known = type(arguments.thread).__module__.startswith("tensorboard.")
        if not (known and isinstance(arguments.exc_value, OSError)):
            before(arguments)

    if before.__module__ != __name__:
        threading.excepthook = hook


def progress_line(
    *,
    epoch: int,
    epochs: int,
    step: int,
    steps: int,
    loss: float,
    lr: float,
    images_per_s: float,
    memory_gb: float,
    eta_s: float,
    extra: Mapping[str, float] | None = None,
    unit: str = "images",
) -> str:
    """The line a person watches.

    `epoch 3/30  step 120/400  loss 0.0312  lr 1.9e-04  412 images/s  mem 2.1 GB  12:31 left`

    `step` of `steps` counts within the epoch; `extra` scalars follow the learning rate; `unit` is what is counted
    per second. Counters are padded to the width of their end, so that lines stand under each other.
    """
    parts = [
        f"epoch {epoch:>{len(str(epochs))}}/{epochs}",
        f"step {step:>{len(str(steps))}}/{steps}",
        f"loss {_figures(loss)}",
        f"lr {lr:.1e}",
        *(f"{name} {_figures(value)}" for name, value in (extra or {}).items()),
        f"{_rate(images_per_s)} {unit}/s",
        f"mem {memory_gb:.1f} GB",
        f"{duration(eta_s)} left",
    ]
    return "  ".join(parts)


def duration(seconds: float | None) -> str:
    """Seconds as `m:ss`, `h:mm:ss` or `2 d 3:04:05`; `?` for what is not known (None, NaN, infinite, negative)."""
    if seconds is None or not math.isfinite(seconds) or seconds < 0:
        return "?"
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    days, h = divmod(hours, 24)
    if days:
        return f"{days} d {h}:{m:02}:{s:02}"
    return f"{h}:{m:02}:{s:02}" if h else f"{m}:{s:02}"


def _figures(value: float) -> str:
    """Four decimals where they say something, else scientific."""
    return f"{value:.4f}" if value == 0 or not math.isfinite(value) or 1e-2 <= abs(value) < 1e4 else f"{value:.2e}"


def _rate(value: float) -> str:
    """Whole numbers from ten per second, one decimal below; `?` before anything was measured."""
    if not math.isfinite(value):
        return "?"
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}"


def _plain(value: Any, keep_nan: bool = False) -> Any:
    """`value` as what JSON can hold, strictly."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v, keep_nan) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(v, keep_nan) for v in value]
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if keep_nan or math.isfinite(value) else None
    if hasattr(value, "tolist"):  # tensors, arrays and numpy's scalars
        listed = value.tolist()
        while isinstance(listed, list) and len(listed) == 1:
            listed = listed[0]
        return _plain(listed, keep_nan)
    return str(value)


def _mend_last_line(path: Path) -> None:
    """Makes the file end with a newline: completes a last line that is whole JSON, cuts off one that is not."""
    if not path.exists():
        return
    with path.open("r+b") as file:
        end = file.seek(0, 2)
        start, tail = end, b""
        while start > 0 and b"\n" not in tail:
            start = max(0, start - 65536)
            file.seek(start)
            tail = file.read(end - start)
        torn = tail[tail.rfind(b"\n") + 1 :]
        if not torn:
            return
        try:
            json.loads(torn)
            file.seek(end)
            file.write(b"\n")
        except ValueError:
            file.truncate(end - len(torn))
