"""Whether files, batch, machines and processes go together; where they do not, what would."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import gcd

from mfm_core.data.sampler import EpochCut


@dataclass(frozen=True)
class Sizes:
    """files: training files. batch: TRAIN.BATCH_SIZE, of each of so many machines. processes: of all machines.

    accum_steps: micro-batches that a process cuts its share into. drop_last: DATA_LOADER.DROP_LAST.
    """

    files: int
    batch: int
    machines: int
    processes: int
    accum_steps: int
    drop_last: bool

    @property
    def pieces(self) -> int:
        """Micro-batches of a step."""
        return self.processes * self.accum_steps

    @property
    def cut(self) -> EpochCut:
        """Of an epoch into batches."""
        return self._cut(self.batch, self.drop_last)

    def refusal(self, needs_two: str = "") -> str:
        """What does not go together and what would, in one line; "" where all does.

        needs_two: why a micro-batch needs two files; "" where one is enough.
        """
        if self.batch * self.machines % self.pieces:
            return (
                f"TRAIN.BATCH_SIZE {self.batch} (times {self.machines} machines) cannot be divided over "
                f"{self.processes} processes times TRAIN.ACCUM_STEPS {self.accum_steps}; choose a multiple of "
                f"{self._unit}."
            )
        least = 2 if needs_two else 1
        if not self.files:
            return "There are no training files; see DATA.PATH_TO_DATA_DIR."
        if not len(self.cut):
            return (
                f"TRAIN.BATCH_SIZE is {self.batch * self.machines} over all machines, but there are only {self.files} "
                f"training files; {self._remedy(least)}."
            )
        if self.cut.smallest < self.pieces:
            steps = len(self.cut)
            return (
                f"DATA_LOADER.DROP_LAST False cuts {self.files} training files into {steps} batch{'es' * (steps > 1)} "
                f"of {self.cut.smallest}{' or more' * self.cut.uneven}, too few for {self.processes} processes times "
                f"TRAIN.ACCUM_STEPS {self.accum_steps}; {self._remedy(least)}."
            )
        if self.cut.smallest < least * self.pieces:
            return f"{needs_two}; {self._remedy(least)}."
        return ""

    def _remedy(self, least: int) -> str:
        """What gives each micro-batch so many files."""
        ways = list(self._ways(least))
        most = self.files // least
        if not ways and most:
            ways.append(f"take at most {most} processes times TRAIN.ACCUM_STEPS")
        return ", or ".join(ways or ["add files"])

    def _ways(self, least: int) -> Iterator[str]:
        batch = self._fitting_batch(least)
        if batch:
            yield f"set TRAIN.BATCH_SIZE to {batch}{' on each machine' * (self.machines > 1)}"
        if self._cut(self.batch, not self.drop_last).smallest >= least * self.pieces:
            yield f"set DATA_LOADER.DROP_LAST {not self.drop_last}"
        if self.cut.smallest >= least and self.processes > 1:
            yield "take fewer processes"
        if self.cut.smallest >= least and self.accum_steps > 1:
            yield "lower TRAIN.ACCUM_STEPS"

    def _fitting_batch(self, least: int) -> int:
        """The TRAIN.BATCH_SIZE nearest to the one there is with so many files in each micro-batch; 0 where none has."""
        need = least * self.pieces
        if self.drop_last:
            smallest = _up(-(-need // self.machines), self._unit)
            largest = self.files // self.machines // self._unit * self._unit
            return min(max(self.batch, smallest), largest) if smallest <= largest else 0
        steps = self.files // need  # at most: with more of them, each has fewer files
        return _up(-(-self.files // (steps * self.machines)), self._unit) if steps else 0

    @property
    def _unit(self) -> int:
        """What TRAIN.BATCH_SIZE has to be a multiple of."""
        return self.pieces // gcd(self.pieces, self.machines)

    def _cut(self, batch: int, drop_last: bool) -> EpochCut:
        return EpochCut(self.files, batch * self.machines, drop_last)


def _up(number: int, unit: int) -> int:
    return -(-number // unit) * unit
