"""Two processes train what one trains: after 20 steps on the same global batches, weights agree to 1e-5."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest
from paths import CONFIGS, REPOSITORY, TOOLS
from tiny_runs import QUIET, TINY, assert_same, last_state, tiny_config

from mfm_core.parallel.launch import launch
from mfm_image.entry import main

ON_LOOPBACK = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
SUICIDE = REPOSITORY / "tests" / "killed_run.py"
TWENTY_STEPS = ["SOLVER.MAX_EPOCH", "10", "TRAIN.BATCH_SIZE", "12", "SOLVER.WARMUP_EPOCHS", "1.0"]
CASES = {
    # Masks differ in size from image to image: a mean of the ranks' means would be off by far more than 1e-5.
    "pretrain": ["SOLVER.CLIP_GRAD_L2NORM", "0.05", "MONITOR.PICTURE_PERIOD", "0"],
    "finetune": ["SOLVER.OPTIMIZING_METHOD", "sgd", "SOLVER.BASE_LR", "0.01", "TRAIN.EMA_DECAY", "0.9"],
}


@pytest.mark.parametrize("kind", CASES)
def test_two_processes_equal_one(kind, photo_folder, tmp_path):
    overrides = [*TWENTY_STEPS, *CASES[kind]]
    assert main(tiny_config(kind, photo_folder, tmp_path / "one", *overrides)) == 0
    two = tiny_config(kind, photo_folder, tmp_path / "two", *overrides, "NUM_GPUS", "2", "TRAIN.ACCUM_STEPS", "2")
    assert launch(main, (two,), processes=2) == 0
    one, other = last_state(tmp_path / "one"), last_state(tmp_path / "two")
    assert one["step"] == other["step"] == 20
    assert_same(one, other, atol=1e-5)
    logs = [_epoch_lines(tmp_path / name / "log.jsonl") for name in ("one", "two")]
    assert len(logs[0]) == len(logs[1]) >= 10
    for first, second in zip(*logs):
        for key in ("train_loss", "val_loss", "top1", "clipped_share"):
            if key in first:
                assert first[key] == pytest.approx(second[key], rel=1e-4), key


def test_a_process_whose_share_of_the_validation_files_is_empty(photo_folder, tmp_path):
    """It takes part in evaluation: the other would wait for it."""
    keys = ["SOLVER.MAX_EPOCH", "1", "TEST.BATCH_SIZE", "16", "DIST.TIMEOUT", "30"]
    assert main(tiny_config("finetune", photo_folder, tmp_path / "one", *keys)) == 0
    assert launch(main, (tiny_config("finetune", photo_folder, tmp_path / "two", *keys, "NUM_GPUS", "2"),), 2) == 0
    (one,), (two,) = (_epoch_lines(tmp_path / name / "log.jsonl") for name in ("one", "two"))
    assert one["images"] == two["images"] == 6
    assert one["val_loss"] == pytest.approx(two["val_loss"], rel=1e-4) and one["top1"] == two["top1"]


def test_torchrun_resumes_what_one_process_began(photo_folder, tmp_path):
    """Continues under torchrun, with two processes, a run that one process stopped in the middle of an epoch."""
    overrides = [*TWENTY_STEPS, *CASES["pretrain"]]
    assert main(tiny_config("pretrain", photo_folder, tmp_path / "whole", *overrides)) == 0
    assert main(tiny_config("pretrain", photo_folder, tmp_path / "run", *overrides, "TRAIN.STOP_STEP", "5")) == 0
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [TOOLS / "run_net.py", "--cfg", CONFIGS / "demo" / "pretrain.yaml", *TINY, "MASK.PRETRAIN_DEPTH", "[1]"]
    command += ["DATA.PATH_TO_DATA_DIR", photo_folder, "OUTPUT_DIR", tmp_path / "run", *overrides]
    done = subprocess.run([str(c) for c in command], env=ON_LOOPBACK, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "continuing from" in done.stdout
    assert_same(last_state(tmp_path / "whole"), last_state(tmp_path / "run"), atol=1e-5)


def test_two_machines_equal_one(photo_folder, tmp_path):
    """NUM_SHARDS: each machine brings its own TRAIN.BATCH_SIZE."""
    overrides = ["SOLVER.MAX_EPOCH", "3", *CASES["pretrain"]]
    assert main(tiny_config("pretrain", photo_folder, tmp_path / "one", *overrides, "TRAIN.BATCH_SIZE", "12")) == 0
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, TOOLS / "run_net.py", "--cfg", CONFIGS / "demo" / "pretrain.yaml"]
    command += ["--init_method", address, *TINY, "MASK.PRETRAIN_DEPTH", "[1]", "NUM_SHARDS", "2"]
    command += ["DATA.PATH_TO_DATA_DIR", photo_folder, "OUTPUT_DIR", tmp_path / "two", *overrides]
    command += ["TRAIN.BATCH_SIZE", "6"]
    machines = [
        subprocess.Popen([*map(str, command), "--shard_id", str(shard)], env=ON_LOOPBACK, stdout=subprocess.DEVNULL)
        for shard in (0, 1)
    ]
    assert [machine.wait(timeout=300) for machine in machines] == [0, 0]
    assert_same(last_state(tmp_path / "one"), last_state(tmp_path / "two"), atol=1e-5)


@pytest.mark.parametrize("shares", [(1, 1), (2, 1)], ids=["even", "uneven"])
def test_another_number_of_machines_keeps_the_batch(shares, photo_folder, tmp_path):
    """Begun by two machines, as torchrun counts them, and gone on with by one: 6 files for each stay 12 a step."""
    overrides = [*TWENTY_STEPS[:2], *CASES["pretrain"], *QUIET]
    assert main(tiny_config("pretrain", photo_folder, tmp_path / "one", *overrides, "TRAIN.BATCH_SIZE", "12")) == 0
    command = [sys.executable, TOOLS / "run_net.py", "--cfg", CONFIGS / "demo" / "pretrain.yaml", *TINY]
    command += ["MASK.PRETRAIN_DEPTH", "[1]", "DATA.PATH_TO_DATA_DIR", photo_folder, "OUTPUT_DIR", tmp_path / "two"]
    command += [*overrides, "TRAIN.BATCH_SIZE", "6", "TRAIN.STOP_STEP", "3"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    world = {**ON_LOOPBACK, **address, "WORLD_SIZE": str(sum(shares)), "GROUP_WORLD_SIZE": "2"}
    local = [{"LOCAL_RANK": str(i), "LOCAL_WORLD_SIZE": str(share)} for share in shares for i in range(share)]
    processes = [
        subprocess.Popen([*map(str, command)], env={**world, **own, "RANK": str(rank)}, stdout=subprocess.DEVNULL)
        for rank, own in enumerate(local)
    ]
    assert {process.wait(timeout=300) for process in processes} == {0}
    assert main(tiny_config("pretrain", photo_folder, tmp_path / "two", *overrides, "TRAIN.BATCH_SIZE", "6")) == 0
    one, other = last_state(tmp_path / "one"), last_state(tmp_path / "two")
    assert one["step"] == other["step"] == 20
    assert_same(one, other, atol=1e-5)


ELASTIC = [*QUIET, "SOLVER.MAX_EPOCH", "4", "TRAIN.BATCH_SIZE", "12", "TRAIN.CHECKPOINT_STEPS", "1"]
"""8 steps, each of which is saved."""


def test_torchrun_starts_again_where_a_worker_died(photo_folder, tmp_path):
    """kill -9 of one of two workers in the middle of a run: the group restarts, and ends as if nothing had happened."""
    done = _torchrun(photo_folder, tmp_path, "--max_restarts", "1", killed_at=5)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("continuing from") == 1
    whole = tiny_config("pretrain", photo_folder, tmp_path / "whole", *ELASTIC, "NUM_GPUS", "2")
    assert launch(main, (whole,), processes=2) == 0
    assert_same(last_state(tmp_path / "whole"), last_state(tmp_path / "run"))


def test_torchrun_without_restarts_continues_by_the_same_command(photo_folder, tmp_path):
    """And with one process less."""
    assert _torchrun(photo_folder, tmp_path, "--max_restarts", "0", killed_at=3).returncode != 0
    assert main(tiny_config("pretrain", photo_folder, tmp_path / "run", *ELASTIC)) == 0
    assert main(tiny_config("pretrain", photo_folder, tmp_path / "whole", *ELASTIC)) == 0
    assert_same(last_state(tmp_path / "whole"), last_state(tmp_path / "run"), atol=1e-5)


def test_machines_that_fail_and_come(photo_folder, tmp_path):
    """One of two agents is killed with its worker, the one of rank 0: the other goes on alone, until a third comes.

    Each machine brings 6 files, and the one that is left takes all 12: the end is that of one process.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path / "run" / "log.txt"
    agents = [_agent(photo_folder, tmp_path, port, "failing", hosts=False, KILLED_NODE="1")]  # before: lower is rank 0
    try:
        agents.append(_agent(photo_folder, tmp_path, port, "staying", hosts=True, PAUSED_ALONE="1"))
        assert agents[0].wait(timeout=300) == -signal.SIGKILL
        deadline = time.monotonic() + 300
        while "1 process(es) on cpu" not in log.read_text():
            assert time.monotonic() < deadline and agents[1].poll() is None, (tmp_path / "staying.txt").read_text()
            time.sleep(0.2)
        agents.append(_agent(photo_folder, tmp_path, port, "coming", hosts=False, PAUSED_ALONE="1"))
        codes = [agent.wait(timeout=300) for agent in agents[1:]]
    finally:
        for agent in agents:
            agent.kill()
            agent.wait()
    said = {name: (tmp_path / f"{name}.txt").read_text() for name in ("failing", "staying", "coming")}
    assert codes == [0, 0], said
    assert re.findall(r"(\d) process\(es\) on cpu", log.read_text()) == ["2", "1", "2"]
    assert re.findall(r"\(step (\d) of 8\)", log.read_text()) == ["3", "5"], "saved each step, and what SIGTERM found"
    assert "2 process(es) on cpu" in said["failing"], "rank 0 was on the machine that failed"
    assert main(tiny_config("pretrain", photo_folder, tmp_path / "whole", *ELASTIC)) == 0
    whole, run = last_state(tmp_path / "whole"), last_state(tmp_path / "run")
    assert whole["step"] == run["step"] == 8
    assert_same(whole, run, atol=1e-5)


def _agent(data, folder, port: int, name: str, hosts: bool, **more: str) -> subprocess.Popen:
    """A torchrun for one machine of one or two; what it says goes to folder/name.txt. hosts: keeps the rendezvous."""
    options = ["--nnodes", "1:2", "--nproc_per_node", "1", "--max_restarts", "1", "--local_addr", "127.0.0.1"]
    options += ["--rdzv_backend", "c10d", "--rdzv_id", "test", "--rdzv_endpoint", f"127.0.0.1:{port}", "--rdzv_conf"]
    options += [f"is_host={str(hosts).lower()},last_call_timeout=5,keep_alive_interval=1,keep_alive_max_attempt=3"]
    command = _killed_run(data, folder, *options, killed_at=3)
    command += ["TRAIN.BATCH_SIZE", "6", "DIST.TIMEOUT", "60"]
    environment = {**ON_LOOPBACK, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", **more}
    with open(folder / f"{name}.txt", "w") as file:
        return subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT)


def _torchrun(data, folder, *options, killed_at: int) -> subprocess.CompletedProcess:
    """Two processes under torchrun, of which rank 1 kills itself once, in step `killed_at`; output in folder/run."""
    command = _killed_run(data, folder, "--standalone", "--nproc_per_node", "2", *options, killed_at=killed_at)
    return subprocess.run(command, env=ON_LOOPBACK, capture_output=True, text=True, timeout=600)


def _killed_run(data, folder, *options, killed_at: int) -> list[str]:
    """The command of a torchrun with these options that starts `killed_run`."""
    command = [sys.executable, "-m", "torch.distributed.run", *options]
    command += [SUICIDE, folder / "killed", killed_at, "--cfg", CONFIGS / "demo" / "pretrain.yaml", *TINY]
    command += ["MASK.PRETRAIN_DEPTH", "[1]", "DATA.PATH_TO_DATA_DIR", data, "OUTPUT_DIR", folder / "run", *ELASTIC]
    return [str(word) for word in command]


def _epoch_lines(path) -> list[dict]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [line for line in lines if line["kind"] == "epoch"]
