"""tools/run_net.py, but its first PAUSED_STARTS starts (or rank PAUSED_RANK of them) wait in step three for a signal.

So a test can have a signal arrive in the middle of a run of few steps, however fast the machine is.
"""

import os
import runpy
import sys
import time
from pathlib import Path

from mfm_core.engine.trainer import Trainer
from mfm_core.parallel import signals

take_step, steps = Trainer.train_step, []
log = os.environ["PAUSED_LOG"]


def train_step(trainer, batch):
    steps.append(trainer.state.step)
    if trainer.world.is_main:
        with open(log, "a") as file:
            file.write(f"{trainer.state.step}\n")
    here = os.environ.get("PAUSED_RANK", str(trainer.world.rank)) == str(trainer.world.rank)
    if here and len(steps) == 3 and len(starts) <= int(os.environ["PAUSED_STARTS"]):
        with open(f"{log}.paused", "a") as file:
            file.write(f"{trainer.world.rank} {os.getpid()}\n")
        deadline = time.monotonic() + 600
        while not signals.asked() and time.monotonic() < deadline:
            time.sleep(0.05)
    return take_step(trainer, batch)


with open(f"{log}.starts.{os.environ.get('RANK', '0')}", "a+") as file:
    file.write("start\n")
    file.seek(0)
    starts = file.readlines()
Trainer.train_step = train_step
sys.argv[0] = str(Path(__file__).parent.parent / "tools" / "run_net.py")
runpy.run_path(sys.argv[0], run_name="__main__")
