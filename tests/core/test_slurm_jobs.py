"""The job around a run: what Slurm and submitit start, stop, re-queue and end; `job_stub` stands for the run."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from slurm_cluster import on_slurm

from mfm_core.parallel import slurm

STUB = Path(__file__).parent.parent / "job_stub.py"

pytest.importorskip("submitit", reason="submitit is not installed")


def request(folder: Path, *words: object, runs: int = 1, **others) -> slurm.JobRequest:
    """`runs` jobs of two processes that do what `job_stub` says, each in a folder of its own."""
    folders = [folder / str(i) for i in range(runs)]
    for each in folders:
        each.mkdir()
    commands = [[str(STUB), str(each), *map(str, words)] for each in folders]
    return slurm.JobRequest("stub", folder / "slurm", commands, processes_per_node=2, minutes=10, **others)


def starts(folder: Path) -> list[dict[str, str]]:
    """What the processes found in their environment, in the order of starts and ranks."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("start_*.json"))]


@on_slurm
def test_time_limit_requeues_until_it_ends(on_cluster, tmp_path):
    """The signal 9 minutes before the limit of 10 comes when the limit is lowered to that."""
    (job,) = slurm.submit(request(tmp_path, "stop", 1, grace=540))
    on_cluster.wait(lambda: len(starts(tmp_path / "0")) == 2, "start", job.job_id)
    on_cluster.run("scontrol", "update", f"JobId={job.job_id}", "TimeLimit=9")
    end = on_cluster.wait_for_end(job.job_id)
    assert (end["JobState"], end["ExitCode"], end["Restarts"]) == ("COMPLETED", "0:0", "1")
    ranks = [(start["RANK"], start["LOCAL_RANK"]) for start in starts(tmp_path / "0")]
    assert ranks == [("0", "0"), ("1", "1")] * 2
    for start in starts(tmp_path / "0"):
        assert (start["WORLD_SIZE"], start["LOCAL_WORLD_SIZE"], start["MASTER_ADDR"]) == ("2", "2", "127.0.0.1")
    assert len({start["MASTER_PORT"] for start in starts(tmp_path / "0")}) == 1
    assert not list((tmp_path / "slurm").glob("again_*"))


@on_slurm
def test_preempted_jobs_come_back(on_cluster, tmp_path):
    """Both jobs of an array."""
    jobs = slurm.submit(request(tmp_path, "stop", 1, runs=2, partition="main"))
    on_cluster.wait(lambda: len(starts(tmp_path / "0") + starts(tmp_path / "1")) == 4, "start")
    on_cluster.run("sbatch", "--partition=urgent", "--ntasks=4", "--output=/dev/null", "--wrap=true")
    for job in jobs:
        end = on_cluster.wait_for_end(job.job_id)
        assert (end["JobState"], end["Restarts"]) == ("COMPLETED", "1")
    for folder in (tmp_path / "0", tmp_path / "1"):
        assert len(starts(folder)) == 4


@on_slurm
def test_cancelled_jobs_do_not_come_back(on_cluster, tmp_path):
    """Though their processes have asked for it: `scancel`, too, is a SIGTERM to them."""
    (job,) = slurm.submit(request(tmp_path, "stop", 1))
    on_cluster.wait(lambda: len(starts(tmp_path / "0")) == 2, "start", job.job_id)
    on_cluster.run("scancel", job.job_id)
    assert on_cluster.wait_for_end(job.job_id)["JobState"] == "CANCELLED"
    on_cluster.wait((tmp_path / "0" / "asked_0_0").exists, "signal")
    time.sleep(3)
    end = on_cluster.job(job.job_id)
    assert (end["JobState"], end["Restarts"]) == ("CANCELLED", "0")


@on_slurm
def test_a_rank_that_fails_ends_the_job(on_cluster, tmp_path):
    """The others are told by SIGTERM, which must not look like pre-emption."""
    (job,) = slurm.submit(request(tmp_path, "fail"))
    end = on_cluster.wait_for_end(job.job_id)
    assert (end["JobState"], end["Restarts"]) == ("FAILED", "0")


@on_slurm
def test_an_end_to_requeuing(on_cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(slurm, "MAX_REQUEUES", 1)
    (job,) = slurm.submit(request(tmp_path, "stop", 9))
    for start in (0, 1):
        on_cluster.wait((tmp_path / "0" / f"start_{start}_1.json").exists, f"start {start}", job.job_id)
        on_cluster.run("scancel", "--signal=USR1", job.job_id)
    end = on_cluster.wait_for_end(job.job_id)
    assert (end["JobState"], end["ExitCode"], end["Restarts"]) == ("FAILED", "75:0", "1")
    assert "submit it again" in Path(end["StdOut"]).read_text()
