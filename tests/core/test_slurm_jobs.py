"""The job around a run: what Slurm and submitit start, stop, re-queue and end; `job_stub` stands for the run."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import signal
import time
from pathlib import Path

import pytest
from slurm_cluster import on_slurm

from mfm_core.config.defaults import get_cfg
from mfm_core.errors import UserError
from mfm_core.parallel import slurm

pytestmark = pytest.mark.xdist_group("slurm jobs")  # what they share is made once
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
def test_the_signal_before_the_time_limit_requeues(on_cluster, tmp_path):
    """`tests/e2e/test_slurm.py` has it from Slurm itself."""
    (job,) = slurm.submit(request(tmp_path, "stop", 1))
    on_cluster.wait(lambda: len(starts(tmp_path / "0")) == 2, "start", job.job_id)
    on_cluster.run("scancel", "--signal=USR2", job.job_id)
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
        for rank in (0, 1):  # each listens from its note on
            on_cluster.wait((tmp_path / "0" / f"start_{start}_{rank}.json").exists, f"start {start}", job.job_id)
        on_cluster.run("scancel", "--signal=USR1", job.job_id)
    end = on_cluster.wait_for_end(job.job_id)
    assert (end["JobState"], end["ExitCode"], end["Restarts"]) == ("FAILED", "75:0", "1")
    assert "submit it again" in Path(end["StdOut"]).read_text()


def test_local_executor_continues_what_was_stopped(tmp_path):
    """submitit's own processes in the place of Slurm's: told by SIGTERM, both ranks start a second time."""
    (job,) = slurm.submit(request(tmp_path, "stop", 1), cluster="local")
    try:
        wait_for(lambda: len(starts(tmp_path / "0")) == 2)
        os.kill(int(job.job_id), signal.SIGTERM)
        wait_for(lambda: len(starts(tmp_path / "0")) == 4)
        assert job._process.wait(timeout=60) == 0
    finally:
        job._process.kill()
    assert [start["RANK"] for start in starts(tmp_path / "0")] == ["0", "1"] * 2
    assert {start["WORLD_SIZE"] for start in starts(tmp_path / "0")} == {"2"}


def wait_for(condition) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@on_slurm
def test_what_sbatch_says_comes_in_one_line(on_cluster, tmp_path, capsys):
    with pytest.raises(UserError, match=r"^sbatch refuses the job: .*invalid partition[^\n]*$"):
        slurm.submit(request(tmp_path, "stop", 0, partition="nowhere"))
    assert capsys.readouterr() == ("", "")


def test_no_sbatch(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="no sbatch on this machine"):
        slurm.submit(request(tmp_path, "stop", 0))


def test_no_submitit(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="submitit, which is not installed; pip install"):
        slurm.submit(request(tmp_path, "stop", 0))


@pytest.mark.parametrize(
    ("text", "minutes"),
    {"90": 90, "1:30": 2, "24:00:00": 1440, "0:00:01": 1, "2-12": 3600, "1-00:30": 1470, "1-00:30:30": 1471}.items(),
)
def test_time_limits_as_sbatch_reads_them(text, minutes):
    assert slurm.minutes_of(text) == minutes


@pytest.mark.parametrize("text", ["", "soon", "-5", "0", "1:2:3:4", "1h"])
def test_no_time_limits(text):
    with pytest.raises(UserError, match="--time is"):
        slurm.minutes_of(text)


def asked_of(*words: str, **keys) -> slurm.JobRequest:
    """What the command line asks of Slurm, for a configuration with these keys."""
    parser = argparse.ArgumentParser()
    slurm.add_options(parser)
    cfg = get_cfg()
    cfg.merge_from_list([word for key, value in keys.items() for word in (key.replace("__", "."), value)])
    options = parser.parse_args(slurm.join_seeds(["--slurm", *words]))
    return slurm.JobRequest.from_cfg(cfg, options, ["run.py", "--cfg", "x.yaml"])


def test_nodes_and_gpus_are_those_of_the_configuration():
    request = asked_of(NUM_SHARDS=2, NUM_GPUS=8, DATA_LOADER__NUM_WORKERS=5, OUTPUT_DIR="runs/a")
    assert (request.nodes, request.processes_per_node, request.gpus, request.cpus) == (2, 8, 8, 6)
    assert request.folder == Path("runs/a/slurm").absolute() and request.name == "a"
    assert request.runs == [["run.py", "--cfg", "x.yaml", "NUM_SHARDS", "2", "NUM_GPUS", "8"]]


def test_options_stand_above_the_configuration():
    request = asked_of("--nodes", "3", "--gpus-per-node", "4", "--cpus-per-gpu", "2", NUM_SHARDS=2, NUM_GPUS=8)
    assert (request.nodes, request.processes_per_node, request.gpus, request.cpus) == (3, 4, 4, 2)
    assert request.runs[0][3:] == ["NUM_SHARDS", "3", "NUM_GPUS", "4"]


def test_no_gpus_where_the_device_is_the_cpu():
    request = asked_of(DEVICE="cpu", NUM_GPUS=4)
    assert (request.processes_per_node, request.gpus) == (4, 0)


def test_each_seed_has_a_folder_of_its_own():
    request = asked_of("--seeds", "3", "5", OUTPUT_DIR="runs/a")
    assert [words[-4:] for words in request.runs] == [
        ["RNG_SEED", "3", "OUTPUT_DIR", "runs/a/seed_3"],
        ["RNG_SEED", "5", "OUTPUT_DIR", "runs/a/seed_5"],
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--nodes", "0"], "--nodes is 0"),
        (["--time", "2"], "no longer than --grace, 120 seconds"),
        (["--sbatch", "account mine"], "looks like account=NAME"),
        (["--sbatch", "signal=USR1@5"], "--sbatch signal would break"),
        (["--sbatch", "no-requeue"], "--sbatch no-requeue would break"),
        (["--sbatch", "nodes=2"], "--sbatch nodes has an option of its own: --nodes"),
        (["--sbatch=--time=1:00:00"], "--sbatch time has an option of its own: --time"),
        (["--sbatch", "partition=gpu"], "own: --partition"),
        (["--sbatch", "gpus-per-node=4"], "own: --gpus-per-node"),
        (["--sbatch", "gpus=4"], "own: --gpus-per-node"),
        (["--sbatch", "cpus-per-task=4"], "own: --cpus-per-gpu"),
        (["--sbatch", "job-name=x"], "--sbatch job-name is the last part of OUTPUT_DIR"),
        (["--sbatch", "gres=gpu:a100:8"], "gres=gpu:a100:8 is for 8 GPU.* and the run for 1; give --gpus-per-node 8"),
        (["--gpus-per-node", "8", "--sbatch", "gres=disk:1,gpu"], "for 1 GPU"),
    ],
)
def test_what_cannot_be_asked(words, message):
    with pytest.raises(UserError, match=message):
        asked_of(*words)


@pytest.mark.parametrize(
    ("gres", "gpus"), [("gpu:a100:8", None), ("disk:2,gpu:8", None), ("gpu:a:4,gpu:b:4", None), ("disk:400", 8)]
)
def test_a_type_of_gpu_stands_in_the_place_of_the_number_alone(gres, gpus):
    """GPUs are asked for once; other resources come beside them."""
    options = slurm._parameters(asked_of("--gpus-per-node", "8", "--sbatch", f"gres={gres}"))
    assert options["slurm_additional_parameters"]["gres"] == gres and options["gpus_per_node"] == gpus


def test_other_options_reach_sbatch():
    options = slurm._parameters(asked_of("--sbatch", "account=mine", "--sbatch", "exclusive"))
    assert options["slurm_additional_parameters"] == {"requeue": True, "account": "mine", "exclusive": True}
