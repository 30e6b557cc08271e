"""For whole runs."""

import pytest
import torch

from mfm_image.entry import main


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Models this small gain nothing from more threads, and lose much where the cores are busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def error_of(capsys):
    """Runs a configuration that must fail; the one line it says."""

    def error_of(cfg) -> str:
        capsys.readouterr()
        assert main(cfg) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1, error
        return error

    return error_of
