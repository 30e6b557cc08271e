"""killed_run.py FILE STEP …: tools/run_net.py, but rank 1 ends by SIGKILL in step STEP, where FILE is not there yet.

With KILLED_NODE in the environment it is this process instead, whatever its rank, after the torchrun that started it:
as when a machine fails.
"""

import os
import runpy
import signal
import sys
from pathlib import Path

from mfm_core.engine.trainer import Trainer

take_step = Trainer.train_step
killed, at = Path(sys.argv[1]), int(sys.argv[2])
node = "KILLED_NODE" in os.environ


def train_step(trainer, batch):
    if (node or trainer.world.rank == 1) and trainer.state.step == at and not killed.exists():
        killed.touch()
        if node:
            os.kill(os.getppid(), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)
    return take_step(trainer, batch)


Trainer.train_step = train_step
sys.argv = [str(Path(__file__).parent.parent / "tools" / "run_net.py"), *sys.argv[3:]]
runpy.run_path(sys.argv[0], run_name="__main__")
