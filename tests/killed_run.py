"""killed_run.py FILE STEP …: tools/run_net.py, but rank 1 ends by SIGKILL in step STEP, where FILE is not there yet."""

import os
import runpy
import signal
import sys
from pathlib import Path

from mfm_core.engine.trainer import Trainer

take_step = Trainer.train_step
killed, at = Path(sys.argv[1]), int(sys.argv[2])


def train_step(trainer, batch):
    if trainer.world.rank == 1 and trainer.state.step == at and not killed.exists():
        killed.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return take_step(trainer, batch)


Trainer.train_step = train_step
sys.argv = [str(Path(__file__).parent.parent / "tools" / "run_net.py"), *sys.argv[3:]]
runpy.run_path(sys.argv[0], run_name="__main__")
