"""killed_save.py MOMENT NUMBER …: tools/run_net.py, but in save NUMBER (from 1) the main process ends by SIGKILL.

MOMENT: writing (its part is written), facts (all parts are), named (the old folder has another name), or done.
"""

import os
import runpy
import signal
import sys
from pathlib import Path

from mfm_core.checkpoint import sharded
from mfm_core.parallel.parts import _Writer

moment, number = sys.argv[1], int(sys.argv[2])
saves = [0]
write_data, replace = _Writer.write_data, os.replace


def kill(at: str) -> None:
    if at == moment and saves[0] == number:
        os.kill(os.getpid(), signal.SIGKILL)


def writes(writer, *arguments):
    result = write_data(writer, *arguments)
    if os.environ.get("RANK", "0") == "0":
        saves[0] += 1
        kill("writing")
    return result


def replaces(old, new):
    if Path(old).is_dir():
        kill("facts")
    replace(old, new)
    if str(new).endswith(sharded.REPLACED):
        kill("named")
    if str(old).endswith(".tmp") and Path(new).is_dir():
        kill("done")


_Writer.write_data = writes
sharded.os.replace = replaces
sys.argv = [str(Path(__file__).parent.parent / "tools" / "run_net.py"), *sys.argv[3:]]
runpy.run_path(sys.argv[0], run_name="__main__")
