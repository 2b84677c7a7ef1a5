"""The pool of workers: what becomes of episodes whose process dies or hangs, and when a run stops."""

from __future__ import annotations

import pytest
import toy_threads

from multismolvla_eval.config import EnvironmentArguments, EvalConfig
from multismolvla_eval.protocol.schedule import EpisodeSpec
from multismolvla_eval.rollout.pool import WorkerError, WorkerPool


@pytest.fixture
def make_pool(tmp_path, monkeypatch):
    """Pools whose processes are threads; see :mod:`toy_threads`."""
    monkeypatch.setattr("multismolvla_eval.rollout.pool.worker_main", toy_threads.worker_main)
    monkeypatch.setattr("multismolvla_eval.rollout.pool.POLL_S", 0.05)

    def make(workers=1, timeout=60.0, **options):
        environment = EnvironmentArguments("toy", "toy", None, {"done": [], "starts": [], **options})
        config = EvalConfig(
            env=environment,
            workers=workers,
            output=tmp_path,
            episode_timeout=timeout,
        )
        pool = WorkerPool(config)
        pool._context = toy_threads.Context()
        return pool, environment.options["done"]

    return make


def run(pool: WorkerPool, *places: tuple[int, int], policies="a"):
    """What finished, and what is recorded as crashed, of episodes at these places: (task, number)."""
    rows, crashes = [], []
    episodes = [EpisodeSpec(policy, "toy", task, "C0", n) for task, n in places for policy in policies]
    try:
        pool.load()
        for row in pool.run(episodes):
            if row.crashed:
                crashes.append((row.task_id, row.episode, row.cause))
            else:
                rows.append((row.task_id, row.episode))
    finally:
        pool.close()
    return sorted(rows), crashes


CRASH = "crash: exit code -6"
PLACES = [(task, number) for number in range(3) for task in range(2)]


@pytest.mark.parametrize("workers", [1, 3])
def test_a_crashed_episode_runs_again_and_a_second_crash_is_its_failure(make_pool, workers):
    pool, done = make_pool(workers, crash={(0, 0): 1, (1, 0): 9})
    rows, crashes = run(pool, *PLACES)
    assert rows == sorted(set(PLACES) - {(1, 0)}), "each once"
    assert sorted(done) == rows
    assert crashes == [(1, 0, CRASH)]


def test_an_episode_that_does_not_end_counts_as_crashed(make_pool):
    pool, _ = make_pool(workers=2, timeout=0.4, hang=[(0, 1)])
    rows, crashes = run(pool, *PLACES)
    assert rows == sorted(set(PLACES) - {(0, 1)})
    assert crashes == [(0, 1, "crash: no end after 0.4 s")]


def test_a_start_that_no_policy_can_run_from_stops_nobody_else(make_pool):
    pool, _ = make_pool(crash={(0, 0): 99})
    rows, crashes = run(pool, (0, 0), (0, 1), policies="abcd")
    assert rows == [(0, 1)] * 4
    assert crashes == [(0, 0, CRASH)] * 4


def test_a_setup_that_breaks_stops_the_run_and_no_crash_is_recorded(make_pool):
    pool, done = make_pool(at_most=2)
    rows = []
    pool.load()
    message = r"(?s)3 episodes crashed in a row.*a\|toy\|0\|C0\|2\|0: crash.*same command.*worker-0\.log"
    episodes = [EpisodeSpec("a", "toy", 0, "C0", n) for n in range(9)]
    with pytest.raises(WorkerError, match=message):
        rows.extend(pool.run(episodes))
    pool.close()
    assert done == [(0, 0), (0, 1)]


@pytest.mark.parametrize("start", [1, 2])
def test_a_process_that_cannot_load_stops_the_run(make_pool, start):
    pool, _ = make_pool(crash={(0, 0): 1}, unloadable=[start])
    with pytest.raises(WorkerError, match=r"(?s)could not be loaded \(exit code -6\).*logs"):
        run(pool, (0, 0), (0, 1))
