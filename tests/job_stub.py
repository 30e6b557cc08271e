"""In the place of tools/run_net.py in a job: notes its ranks, and stops, fails or finishes as its command line says.

job_stub.py FOLDER stop N: waits for a signal and asks to be continued, in the first N starts; then finishes.
job_stub.py FOLDER fail: rank 1 ends with code 2 at once, the others wait for it.
"""

import json
import os
import sys
import time
from pathlib import Path

from mfm_core.parallel import signals

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def wait_for_signal() -> None:
    deadline = time.monotonic() + 120
    while not signals.asked():
        assert time.monotonic() < deadline
        time.sleep(0.02)


folder, what, *rest = Path(sys.argv[1]), *sys.argv[2:]
rank = os.environ["RANK"]
with signals.listening():
    starts = len(list(folder.glob(f"start_*_{rank}.json")))
    note = folder / f"start_{starts}_{rank}.json"
    note.with_suffix(".tmp").write_text(json.dumps({name: os.environ[name] for name in NAMES}))
    note.with_suffix(".tmp").rename(note)
    if what == "fail" and rank == "1":
        sys.exit(2)
    if what == "fail" or starts < int(rest[0]):
        wait_for_signal()
        (folder / f"asked_{starts}_{rank}").touch()
        sys.exit(1 if what == "fail" else signals.EXIT_AGAIN)
