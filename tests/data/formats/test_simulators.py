"""The processes that render: what ends one of them is named, and none outlives its pool."""

import os

import pytest

from multismolvla.system.command import CommandError
from multismolvla_data.formats.simulators import simulator_pool


def killed_worker() -> None:
    with simulator_pool(1) as pool:
        pool.submit(os._exit, 9).result()


def test_a_process_that_dies_is_named():
    with pytest.raises(CommandError, match="--workers"):
        killed_worker()


def test_processes_render_with_one_thread_and_end_with_the_pool(monkeypatch):
    monkeypatch.setenv("LP_NUM_THREADS", "7")
    with simulator_pool(1) as pool:
        assert pool.submit(os.getenv, "LP_NUM_THREADS").result() == "1"
        worker = pool.submit(os.getpid).result()
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)
