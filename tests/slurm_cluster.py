"""A Slurm of one node on this machine's loopback, with nothing outside its folder: munged, slurmctld and slurmd.

Two partitions share the node: jobs in `urgent` pre-empt those in `main`, which get SIGTERM and ten seconds.
"""

from __future__ import annotations

import getpass
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel", "squeue")
ENDS = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED")
PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=10
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1,defer=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=0
ReturnToService=2
KillWait=30
MessageTimeout=60
SlurmdTimeout=600
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES State=UP PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes={host} State=UP PriorityTier=2
"""


def missing() -> list[str]:
    """Programs of Slurm and munge that are not installed."""
    return [name for name in PROGRAMS if shutil.which(name, path=PATH) is None]


on_slurm = pytest.mark.skipif(bool(missing()), reason=f"Slurm is not installed (no {', '.join(missing())})")


class Cluster:
    """What a test asks of the running Slurm. Every call is bounded."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder, self.environment = folder, environment

    def run(self, *command: object, check: bool = True) -> str:
        """Runs a command of Slurm's, or another in its environment; what it prints."""
        done = subprocess.run(
            [str(word) for word in command], env=self.environment, capture_output=True, text=True, timeout=200
        )
        assert done.returncode == 0 or not check, f"{command}: {done.stderr}{done.stdout}\n{self.logs()}"
        return done.stdout

    def job(self, job_id: str) -> dict[str, str]:
        """What `scontrol show job` knows of a job."""
        return dict(re.findall(r"(\w+)=(\S+)", self.run("scontrol", "show", "job", job_id)))

    def wait(self, condition: Callable[[], bool], what: str, job_id: str = "", seconds: float = 600) -> None:
        """Until `condition()`; fails with the logs where that takes too long or the job has ended."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"no {what} in {seconds} s\n{self.logs()}"
            if job_id and (job := self.job(job_id))["JobState"] in ENDS and not condition():
                said = Path(job["StdOut"])
                raise AssertionError(f"no {what}: {job}\n{said.read_text() if said.exists() else ''}")
            time.sleep(0.2)

    def wait_for_end(self, job_id: str) -> dict[str, str]:
        """Until a job will not run any more; what is known of it."""
        self.wait(lambda: self.job(job_id)["JobState"] in ENDS, f"end of job {job_id}")
        return self.job(job_id)

    def reach_time_limit(self, job_id: str, grace_minutes: int) -> None:
        """Lowers the limit to where the signal is due, that many minutes before it, until the job is queued again."""
        limit = self.job(job_id)["TimeLimit"]
        self.run("scontrol", "update", f"JobId={job_id}", f"TimeLimit={grace_minutes}")
        self.wait(lambda: self.job(job_id)["JobState"] == "PENDING", "re-queuing", job_id)
        self.run("scontrol", "update", f"JobId={job_id}", f"TimeLimit={limit}")

    def logs(self) -> str:
        """The ends of all logs."""
        return "\n".join(f"== {path}\n{path.read_text()[-3000:]}" for path in sorted(self.folder.glob("*.log")))


@contextmanager
def one_node(folder: Path) -> Iterator[Cluster]:
    """Starts everything in `folder`, whose path is short enough for a socket, and stops it at the end."""
    environment = {**os.environ, "PATH": PATH, "SLURM_CONF": str(folder / "slurm.conf")}
    for name in [name for name in environment if name.startswith("SLURM_") and name != "SLURM_CONF"]:
        del environment[name]
    for name in ("state", "spool"):
        (folder / name).mkdir(mode=0o755)
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o400)
    text = CONFIGURATION.format(
        host=socket.gethostname().split(".")[0], user=getpass.getuser(), folder=folder, ports=_free_ports(2)
    )
    (folder / "slurm.conf").write_text(text)
    munge = {"socket": "munge.socket", "key-file": "munge.key", "pid-file": "munged.pid", "seed-file": "munge.seed"}
    munge["log-file"] = "munged.log"
    commands = [
        ["munged", "--foreground", "--force", *(f"--{option}={folder / name}" for option, name in munge.items())],
        ["slurmctld", "-D", "-i"],
        ["slurmd", "-D"],
    ]
    cluster, daemons = Cluster(folder, environment), []
    try:
        for command in commands:
            daemons.append(_start(command, cluster))
            if command[0] == "munged":
                cluster.wait((folder / "munge.socket").exists, "munged", seconds=60)
        cluster.wait(lambda: "idle" in cluster.run("sinfo", "-h", "-o", "%T", check=False), "idle node", seconds=120)
        yield cluster
    finally:
        _stop(cluster, daemons)


def _start(command: list[str], cluster: Cluster) -> subprocess.Popen:
    """A daemon that dies with this process, whatever happens to that."""
    with open(cluster.folder / f"{command[0]}.out.log", "w") as out:
        return subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *command],
            env=cluster.environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
        )


def _stop(cluster: Cluster, daemons: list[subprocess.Popen]) -> None:
    with suppress(AssertionError, OSError, subprocess.TimeoutExpired):
        user = f"--user={getpass.getuser()}"
        cluster.run("scancel", "--full", user, check=False)
        cluster.wait(lambda: not cluster.run("squeue", "-h", check=False).strip(), "empty queue", seconds=60)
    for daemon in reversed(daemons):
        daemon.terminate()
        with suppress(subprocess.TimeoutExpired):
            daemon.wait(timeout=20)
        daemon.kill()
        daemon.wait()
    for process in _left(cluster.environment["SLURM_CONF"]):
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def _left(configuration: str) -> list[int]:
    """Processes of jobs of this cluster: its configuration is in their environment, as in no other's."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if f"SLURM_CONF={configuration}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
    return [process for process in found if process != os.getpid()]


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()
