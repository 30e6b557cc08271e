"""killed_run.py FILE STEP …: tools/run_net.py, but rank 1 ends by SIGKILL in step STEP, where FILE is not there yet.

With KILLED_NODE in the environment it is this process instead, whatever its rank, after the torchrun that started it:
as when a machine fails. With PAUSED_ALONE the only process of a run waits in the step after STEP until it is told to
stop, which torchrun does when a machine comes.
"""

import os
import runpy
import signal
import sys
import time
from pathlib import Path

from mfm_core.engine.trainer import Trainer
from mfm_core.parallel import signals

take_step = Trainer.train_step
killed, at = Path(sys.argv[1]), int(sys.argv[2])
node, pauses = "KILLED_NODE" in os.environ, "PAUSED_ALONE" in os.environ


def train_step(trainer, batch):
    world, step = trainer.world, trainer.state.step
    if (node or world.rank == 1 and not pauses) and step == at and not killed.exists():
        killed.touch()
        if node:
            os.kill(os.getppid(), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)
    if pauses and world.size == 1 and step == at + 1:
        deadline = time.monotonic() + 300
        while not signals.asked() and time.monotonic() < deadline:
            time.sleep(0.05)
    return take_step(trainer, batch)


Trainer.train_step = train_step
sys.argv = [str(Path(__file__).parent.parent / "tools" / "run_net.py"), *sys.argv[3:]]
runpy.run_path(sys.argv[0], run_name="__main__")
