"""A job that Slurm stops, at the time limit or for a more urgent one, ends bit for bit as an undisturbed run."""

from __future__ import annotations

from pathlib import Path

import pytest
from entry_point import run_net
from paths import CONFIGS
from slurm_cluster import on_slurm
from tiny_runs import QUIET, TINY, assert_same, last_state, log_of, tiny_config

from mfm_core.parallel.launch import launch
from mfm_image.entry import main

TWELVE_STEPS = [*QUIET, "TRAIN.BATCH_SIZE", "4", "SOLVER.CLIP_GRAD_L2NORM", "0.05", "LOG_PERIOD", "50"]
"""At 6 an epoch; a stop that waited for a logging step would come at its end."""
PAUSED = Path(__file__).parent.parent / "paused_run.py"

pytest.importorskip("submitit", reason="submitit is not installed")


def arguments(data, output, *overrides) -> list[str]:
    """The command line of `tiny_config("pretrain", …)`."""
    words = ["--cfg", CONFIGS / "demo" / "pretrain.yaml", *TINY, "MASK.PRETRAIN_DEPTH", "[1]", *TWELVE_STEPS]
    return [str(word) for word in (*words, "DATA.PATH_TO_DATA_DIR", data, "OUTPUT_DIR", output, *overrides)]


def pauses(monkeypatch, log: Path, starts: int) -> None:
    """What is submitted from here on waits for signals: see `paused_run`."""
    monkeypatch.setattr(run_net, "__file__", str(PAUSED))
    monkeypatch.setenv("PAUSED_LOG", str(log))
    monkeypatch.setenv("PAUSED_STARTS", str(starts))


def paused(log: Path) -> int:
    """How many processes have come to a pause."""
    file = Path(f"{log}.paused")
    return len(file.read_text().splitlines()) if file.exists() else 0


def submitted(capsys) -> str:
    """The number of the job that the command says it has submitted."""
    out = capsys.readouterr().out
    job_id = out.split("scancel ")[1].strip()
    assert f"job {job_id}" in out and "slurm" in out
    return job_id


@on_slurm
def test_preempted_and_out_of_time(on_cluster, photo_folder, tmp_path, capsys, monkeypatch):
    """Two processes, first pre-empted, then at the time limit: the same weights to the bit."""
    log, output = tmp_path / "steps", tmp_path / "run"
    pauses(monkeypatch, log, starts=2)
    asked = ["--slurm", "--partition", "main", "--time", "2:00:00", "--grace", str(59 * 60), "--gpus-per-node", "2"]
    assert run_net.main([*asked, *arguments(photo_folder, output)]) == 0
    job = submitted(capsys)
    on_cluster.wait(lambda: paused(log) == 2, "first pause", job)
    on_cluster.run("sbatch", "--partition=urgent", "--ntasks=4", "--output=/dev/null", "--wrap=true")
    on_cluster.wait(lambda: paused(log) == 4, "second pause, after pre-emption", job)
    on_cluster.reach_time_limit(job, 59)
    end = on_cluster.wait_for_end(job)
    said = (output / "slurm" / f"{job}_0_log.out").read_text()
    assert (end["JobState"], end["ExitCode"], end["Restarts"]) == ("COMPLETED", "0:0", "2"), said
    assert said.count("stopped and saved") == said.count("continuing from") == 2, "the log goes on"
    assert [line["status"] for line in log_of(output, "end")] == ["stopped", "stopped", "finished"]
    steps = [int(line) for line in log.read_text().splitlines()]
    assert steps == list(range(12)), "no step was lost and none taken twice"

    whole = tiny_config("pretrain", photo_folder, tmp_path / "whole", *TWELVE_STEPS, "NUM_GPUS", "2")
    assert launch(main, (whole,), processes=2) == 0
    assert_same(last_state(tmp_path / "whole"), last_state(output))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--partition", "gpu"], "--partition needs --slurm"),
        (["--slurm", "--shard_id", "1"], "leave out --shard_id"),
        (["--slurm", "--seeds", "one"], "it takes whole numbers"),
        (["--slurm", "--nodes", "3"], "TRAIN.BATCH_SIZE 8 (times 3 machines) cannot be divided over 9"),
        (["--slurm", "TRAIN.AUTO_RESUME", "False"], "TRAIN.AUTO_RESUME False would begin anew"),
        (["--slurm"], "no sbatch on this machine"),
    ],
)
def test_what_is_wrong_is_said_before_it_is_submitted(words, message, photo_folder, tmp_path, error_of, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    output, more = tmp_path / "out", ["NUM_GPUS", "3"] if "--nodes" in words else []
    assert message in error_of([*words, *arguments(photo_folder, output, "TRAIN.BATCH_SIZE", "8", *more)])
    assert not output.exists()


def test_seeds_stand_before_keys(photo_folder, tmp_path, capsys):
    words = ["--slurm", "--dry-run", "--time", "1:00:00", "--seeds", "0", "4", "SOLVER.MAX_EPOCH", "5"]
    assert run_net.main(arguments(photo_folder, tmp_path / "out", "SOLVER.MAX_EPOCH", "7", *words)) == 0
    said = capsys.readouterr().out
    assert "Slurm job: each of 2 runs (array): 1 node(s) x 1 process(es), 0 GPU(s)" in said and "60 minutes" in said
    assert "= 5 epochs x" in said
    assert not (tmp_path / "out").exists()
