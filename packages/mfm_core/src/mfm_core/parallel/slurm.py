"""Submits a run to Slurm through submitit; each start of the job continues where the last one stopped.

The way of a job: `sbatch` runs a script that submitit writes, `srun` in it starts one process per GPU, and each calls
`Task`. A signal (`--signal` before the time limit, SIGTERM at pre-emption) reaches the training loop, which saves and
leaves. Rank 0 then leaves a note, and the script, which has waited for all ranks, re-queues the job.

submitit's own way, `checkpoint()`, is not taken: it acts inside the signal handler of rank 0, in the middle of a step
and while the others go on, and passes over SIGTERM. Nor does a process re-queue the job itself: Slurm would end the
other ranks while they still leave, and a job that `scancel` ends would come back. `scancel` ends the script first.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import os
import re
import runpy
import shlex
import shutil
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mfm_core.errors import UserError
from mfm_core.parallel.signals import EXIT_AGAIN, leave_until_listening
from mfm_core.paths import require_local

if TYPE_CHECKING:  # a job's process is to hear signals before it loads what takes long
    from fvcore.common.config import CfgNode

MAX_REQUEUES = 100
"""Starts after the first, against a job that is stopped again and again before it gets anywhere."""
_BREAKS = "would break re-queuing or the processes' ranks; leave it out"
_REFUSED = {
    **dict.fromkeys(("array", "signal", "requeue", "no-requeue", "output", "error", "open-mode"), _BREAKS),
    **dict.fromkeys(("ntasks", "ntasks-per-node", "ntasks-per-gpu"), _BREAKS),
    **{name: f"has an option of its own: --{name}" for name in ("nodes", "time", "partition", "cpus-per-gpu")},
    **dict.fromkeys(("gpus", "gpus-per-node", "gpus-per-task"), "has an option of its own: --gpus-per-node"),
    "cpus-per-task": "has an option of its own: --cpus-per-gpu",
    "job-name": "is the last part of OUTPUT_DIR; choose that",
}
"""Options of sbatch that would break a job, or that it would not be what is said of it with, and what to do instead."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """What `tools/run_net.py --slurm` takes."""
    group = parser.add_argument_group("on a Slurm cluster")
    group.add_argument("--slurm", action="store_true", help="submit the run as a job instead of running it here")
    group.add_argument("--partition", metavar="NAME", help="where it shall run; else the cluster's default")
    group.add_argument("--nodes", type=int, metavar="N", help="machines; else NUM_SHARDS")
    group.add_argument(
        "--gpus-per-node", type=int, metavar="N", help="processes on each, a GPU for each; else NUM_GPUS"
    )
    group.add_argument(
        "--cpus-per-gpu", type=int, metavar="N", help="CPUs for each process; else 1 + DATA_LOADER.NUM_WORKERS"
    )
    group.add_argument(
        "--time", metavar="TIME", help="time limit, as minutes, H:MM:SS or D-HH:MM:SS (24:00:00); then it is re-queued"
    )
    group.add_argument(
        "--grace", type=int, metavar="SECONDS", help="how long before the time limit it saves and leaves (120)"
    )
    group.add_argument(
        "--seeds",
        type=_seeds,
        metavar="N N …",
        help="one run for each of these RNG_SEEDs, as an array; each in OUTPUT_DIR/seed_N",
    )
    group.add_argument(
        "--sbatch",
        action="append",
        metavar="NAME=VALUE",
        help="any other option of sbatch (account=…); may be repeated",
    )


def check_options(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Refuses what belongs to --slurm without it, and what Slurm does itself with it."""
    names = ("partition", "nodes", "gpus_per_node", "cpus_per_gpu", "time", "grace", "seeds", "sbatch")
    given = [name for name in names if getattr(options, name) is not None]
    if given and not options.slurm:
        parser.error(f"--{given[0].replace('_', '-')} needs --slurm")
    if options.slurm and options.doctor:
        parser.error("doctor runs here, without --slurm")
    if options.slurm and any(
        getattr(options, name) != parser.get_default(name) for name in ("shard_id", "init_method")
    ):
        parser.error("with --slurm leave out --shard_id and --init_method, which come from the job")


def join_seeds(words: list[str]) -> list[str]:
    """`--seeds 0 1 2 KEY VALUE` as `--seeds 0,1,2 KEY VALUE`; argparse would take what follows for seeds, too."""
    if "--seeds" not in words:
        return words
    start = words.index("--seeds") + 1
    end = next((i for i in range(start, len(words)) if not re.fullmatch(r"[\d,]+", words[i])), len(words))
    return [*words[:start], ",".join(words[start:end]), *words[end:]]


def _seeds(text: str) -> list[int]:
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise argparse.ArgumentTypeError("it takes whole numbers, such as --seeds 0 1 2")
    return list(dict.fromkeys(map(int, text.split(","))))


@dataclass(frozen=True)
class JobRequest:
    """What is asked of Slurm.

    runs: for each job of the array the command line, from the script on. folder: of the job's script and logs. gpus:
    for each node, 0 is none. minutes: time limit. grace: seconds between the signal and that. extra: options of sbatch.
    """

    name: str
    folder: Path
    runs: list[list[str]]
    nodes: int = 1
    processes_per_node: int = 1
    gpus: int = 0
    cpus: int = 1
    minutes: int = 24 * 60
    grace: int = 120
    partition: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_cfg(cls, cfg: CfgNode, options: argparse.Namespace, command: list[str]) -> JobRequest:
        """`command` runs `cfg`; nodes, processes, seeds and folders are added to it. Raises UserError."""
        numbers = {"--nodes": options.nodes, "--gpus-per-node": options.gpus_per_node, "--grace": options.grace}
        for name, value in {**numbers, "--cpus-per-gpu": options.cpus_per_gpu}.items():
            if value is not None and value < 1:
                raise UserError(f"{name} is {value}; it must be at least 1.")
        if cfg.TRAIN.ENABLE and not cfg.TRAIN.AUTO_RESUME:
            raise UserError(
                "TRAIN.AUTO_RESUME False would begin anew whenever the job is queued again; leave it True with "
                "--slurm, and start afresh in another OUTPUT_DIR."
            )
        nodes = options.nodes or cfg.NUM_SHARDS
        processes = options.gpus_per_node or max(1, cfg.NUM_GPUS)
        command = [*command, "NUM_SHARDS", str(nodes), "NUM_GPUS", str(processes)]
        output = Path(require_local(cfg.OUTPUT_DIR, "OUTPUT_DIR", "where a job's script and log lie"))
        seeds = {seed: str(output / f"seed_{seed}") for seed in options.seeds or ()}
        minutes, grace = minutes_of(options.time or "24:00:00"), options.grace or 120
        if 60 * minutes <= grace:
            raise UserError(f"--time {options.time} is no longer than --grace, {grace} seconds; ask for more.")
        gpus = 0 if cfg.DEVICE == "cpu" else processes
        return cls(
            name=output.resolve().name or "mfm",
            folder=(output / "slurm").absolute(),
            runs=[[*command, "RNG_SEED", str(s), "OUTPUT_DIR", o] for s, o in seeds.items()] or [command],
            nodes=nodes,
            processes_per_node=processes,
            gpus=gpus,
            cpus=options.cpus_per_gpu or 1 + cfg.DATA_LOADER.NUM_WORKERS,
            minutes=minutes,
            grace=grace,
            partition=options.partition,
            extra=_extra(options.sbatch or [], gpus),
        )

    def lines(self) -> list[str]:
        """For `--dry-run`, and after submission."""
        each = f"{self.nodes} node(s) x {self.processes_per_node} process(es), {self.gpus} GPU(s) on each node"
        where = f"partition {self.partition}" if self.partition else "the default partition"
        array = f" each of {len(self.runs)} runs (array):" if len(self.runs) > 1 else ""
        return [
            f"Slurm job:{array} {each}, {self.cpus} CPU(s) per process, {where}, {self.minutes} minutes",
            f"           saves {self.grace} s before the time limit, and at pre-emption; is re-queued and continues",
        ]


def minutes_of(time: str) -> int:
    """Minutes of a time limit as sbatch takes it: M, M:SS, H:MM:SS, D-HH, D-HH:MM, D-HH:MM:SS; rounded up."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", time)
    if not match:
        raise UserError(f"--time is '{time}'; it looks like 90 (minutes), 24:00:00 or 2-12:00:00.")
    days, *rest = (None if part is None else int(part) for part in match.groups())
    given = [part for part in rest if part is not None]
    if days is not None:
        hours, minutes, seconds = given + [0] * (3 - len(given))
    else:
        hours, minutes, seconds = given if len(given) == 3 else [0, *given, 0][:3]
    total = ((days or 0) * 24 + hours) * 3600 + minutes * 60 + seconds
    if not total:
        raise UserError(f"--time is '{time}', which is no time at all.")
    return -(-total // 60)


def _extra(words: list[str], gpus: int) -> dict[str, Any]:
    """NAME=VALUE, or NAME alone, of options of sbatch; those that the job itself depends on are refused.

    gpus: of the run, on each node.
    """
    extra: dict[str, Any] = {}
    for word in words:
        name, has_value, value = word.lstrip("-").partition("=")
        if not re.fullmatch(r"[a-z][a-z0-9-]*", name):
            raise UserError(f"--sbatch is '{word}'; it looks like account=NAME, the name being an option of sbatch.")
        if name in _REFUSED:
            raise UserError(f"--sbatch {name} {_REFUSED[name]}.")
        if name == "gres" and (asked := gpus_of(value)) not in (None, gpus):
            raise UserError(
                f"--sbatch gres={value} is for {asked} GPU(s) on each node, and the run for {gpus}; give "
                f"--gpus-per-node {asked}, or leave gres out."
            )
        extra[name] = value if has_value else True
    return extra


def gpus_of(gres: str) -> int | None:
    """How many GPUs a list of generic resources asks for on each node; None where it names none."""
    found = re.findall(r"(?:^|,)(?:gres[:/])?gpu((?::[^,]*)?)(?=,|$)", gres)
    counts = [words.rpartition(":")[2] for words in found]
    return sum(int(count) if count.isdecimal() else 1 for count in counts) if counts else None


def submit(request: JobRequest, cluster: str = "slurm") -> list[Any]:
    """Submits, and returns submitit's jobs, one for each run. cluster: slurm | local (submitit's, on this machine).

    Raises UserError, in one line, where submitit or sbatch is missing or sbatch refuses.
    """
    if importlib.util.find_spec("submitit") is None:
        raise UserError(
            "--slurm needs the package submitit, which is not installed; pip install 'packages/mfm_core[slurm]'."
        )
    if cluster == "slurm" and not (shutil.which("sbatch") and shutil.which("srun")):
        raise UserError("--slurm: there is no sbatch on this machine; submit from a login node of the cluster.")
    import submitit

    said = io.StringIO()
    try:
        request.folder.mkdir(parents=True, exist_ok=True)
        executor = submitit.AutoExecutor(request.folder, cluster=cluster)
        executor.update_parameters(**_parameters(request))
        with contextlib.redirect_stderr(said):  # submitit repeats there what sbatch says
            return executor.submit_array([Task(words, str(request.folder)) for words in request.runs])
    except OSError as error:
        raise UserError(f"OUTPUT_DIR: {request.folder} cannot be written ({error.strerror}).") from None
    except submitit.core.utils.FailedJobError as error:
        why = " ".join((said.getvalue() or str(error)).replace("sbatch: error:", "").split())
        raise UserError(f"sbatch refuses the job: {why}") from None


def _parameters(request: JobRequest) -> dict[str, Any]:
    note = f"{shlex.quote(str(request.folder))}/again_$SLURM_JOB_ID"
    again = [
        "code=$?",
        f"if [ -e {note} ]; then",
        f"  rm -f {note}",
        f'  if [ "${{SLURM_RESTART_COUNT:-0}}" -lt {MAX_REQUEUES} ]; then',
        "    for wait in 5 10 20 40 0; do",
        '      scontrol requeue "$SLURM_JOB_ID" && exit 0',
        "      sleep $wait",
        "    done",
        "  fi",
        '  echo "saved, but not re-queued; submit it again with the same command to continue"',
        f"  exit {EXIT_AGAIN}",
        "fi",
        "exit $code",
    ]
    return {
        "name": request.name,
        "nodes": request.nodes,
        "tasks_per_node": request.processes_per_node,
        "gpus_per_node": None if gpus_of(str(request.extra.get("gres", ""))) else request.gpus or None,
        "cpus_per_task": request.cpus,
        "timeout_min": request.minutes,
        "stderr_to_stdout": True,
        "slurm_partition": request.partition,
        "slurm_signal_delay_s": request.grace,
        "slurm_setup": [f"rm -f {note}"],
        "slurm_teardown": again,
        # a rank that dies takes the others along; srun no longer takes over what sbatch was told of CPUs
        "slurm_srun_args": ["--kill-on-bad-exit=1", "--open-mode=append", f"--cpus-per-task={request.cpus}"],
        "slurm_additional_parameters": {"requeue": True, **request.extra},
    }


@dataclass(frozen=True)
class Task:
    """What each process of a job does: takes its rank from the environment and runs the command, in this process."""

    command: list[str]
    folder: str

    def __call__(self) -> None:
        """Ends the process with the command's exit code, unless that is 0 or the run shall be continued."""
        import submitit
        from submitit.local.local import LOCAL_REQUEUE_RETURN_CODE

        leave_until_listening()  # submitit's own handlers go
        signal.signal(signal.SIGCONT, signal.SIG_DFL)  # comes before each SIGTERM, and means nothing
        job = submitit.JobEnvironment()
        os.environ.update(rank_variables(job))
        sys.argv = list(self.command)
        try:
            runpy.run_path(self.command[0], run_name="__main__")
            code = 0
        except SystemExit as end:
            code = end.code or 0
        if code == EXIT_AGAIN and job.cluster == "local":
            sys.exit(LOCAL_REQUEUE_RETURN_CODE)
        if code == EXIT_AGAIN and job.global_rank == 0:
            Path(self.folder, f"again_{job.raw_job_id}").touch()
        if code and code != EXIT_AGAIN:  # a code other than 0 makes srun end the other ranks
            sys.exit(code)


def rank_variables(job: Any) -> dict[str, str]:
    """What `join_world` reads, from submitit's `JobEnvironment`, which has it from the variables of Slurm."""
    number = int(re.sub(r"\D", "", job.raw_job_id))
    return {
        "RANK": str(job.global_rank),
        "WORLD_SIZE": str(job.num_tasks),
        "LOCAL_RANK": str(job.local_rank),
        "LOCAL_WORLD_SIZE": str(job.num_tasks // job.num_nodes),
        "MASTER_ADDR": "127.0.0.1" if job.num_nodes == 1 else job.hostnames[0],
        "MASTER_PORT": str(10_000 + number % 20_000),  # jobs that share a node have different numbers
    }
