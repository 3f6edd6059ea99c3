"""What holds for every test: no window for pictures, and the reader's progress is left alone."""

import os

import pytest
import torch

os.environ["MPLBACKEND"] = "agg"


@pytest.fixture(autouse=True)
def reader_of_its_own(tmp_path_factory, monkeypatch):
    """Each test has a reader's folder of its own, empty at first."""
    monkeypatch.setenv("LLMSCRATCH_HOME", str(tmp_path_factory.mktemp("reader")))


@pytest.fixture
def one_thread():
    """For many small operations in torch: more threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
