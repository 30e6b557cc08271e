"""For whole runs."""

import multiprocessing

import pytest
import torch
import torch.multiprocessing
from clips import write_lists
from entry_point import run_net
from tiny_runs import PRETRAINED_BY, QUIET, tiny_clip_config

from mfm_core.checkpoint.resume import newest_checkpoint
from mfm_video.entry import main as video_main


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Models this small gain nothing from more threads, and lose much where the cores are busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session", autouse=True)
def processes_by_fork():
    """A run's processes are forks of one that has imported everything, which each would do for four seconds else.

    Like those that are spawned they know nothing of this process; runs of the command itself spawn theirs.
    """
    multiprocessing.set_forkserver_preload(["torch.utils.tensorboard", "mfm_image.entry", "mfm_video.entry"])
    start = torch.multiprocessing.start_processes

    def start_by_fork(*arguments, **keywords):
        return start(*arguments, **{**keywords, "start_method": "forkserver"})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.multiprocessing, "start_processes", start_by_fork)
        yield


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory):
    """12 training clips, 5 to validate and 5 to test on, of 16 frames at 24 a second; those of the test are wider."""
    counts = {"train": 12, "val": 5, "test": 5}
    return write_lists(tmp_path_factory.mktemp("clips"), counts, {"test": (40, 32)})


@pytest.fixture(scope="session")
def trained_clips(clip_folder, tmp_path_factory):
    """The newest checkpoint of a run of `CLIP_RUNS`; fine-tuning starts from pre-training. Each is run once."""
    root, known = tmp_path_factory.mktemp("trained"), {}

    def trained(kind: str):
        if kind not in known:
            start = ["TRAIN.CHECKPOINT_FILE_PATH", trained(PRETRAINED_BY[kind])] if kind in PRETRAINED_BY else []
            cfg = tiny_clip_config(kind, clip_folder, root / kind, *QUIET, "TEST.ENABLE", "False", *start)
            assert video_main(cfg) == 0
            known[kind] = newest_checkpoint(root / kind / "checkpoints")
        return known[kind]

    return trained


@pytest.fixture
def error_of(capsys):
    """Runs a configuration or a command line that must fail; the one line it says."""

    def error_of(what) -> str:
        capsys.readouterr()
        code = run_net.main(what) if isinstance(what, list) else run_net.entry_of(what).main(what)
        error = capsys.readouterr().err
        assert code == 2
        assert error.startswith("error: ") and error.endswith("\n") and error.count("\n") == 1, error
        return error

    return error_of
