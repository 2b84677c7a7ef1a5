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
    assert crashes == [(1, 0, CRASH)]
    # where the second crash came last, an episode that had finished ran once more, unrecorded
    assert len(rows) <= len(done) <= len(rows) + 1
    assert set(done) == set(rows)


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


@pytest.mark.parametrize("places", [[(0, 0)], [(0, 0), (1, 0)]])
@pytest.mark.parametrize("workers", [1, 2])
def test_where_every_start_crashes_nothing_is_recorded(make_pool, places, workers):
    pool, _ = make_pool(workers, at_most=0)
    with pytest.raises(WorkerError, match=r"(?s)No episode has finished.*0: crash.*same command"):
        run(pool, *places, policies="ab")


@pytest.mark.parametrize("breaks", [False, True])
def test_at_the_end_an_episode_that_had_finished_shows_whether_the_setup_works(make_pool, breaks):
    pool, done = make_pool(crash={(1, 0): 9}, at_most=1 if breaks else 99)
    if breaks:
        with pytest.raises(WorkerError, match="had finished before crashes now"):
            run(pool, (0, 0), (1, 0))
        assert done == [(0, 0)]
    else:
        assert run(pool, (0, 0), (1, 0)) == ([(0, 0)], [(1, 0, CRASH)])
        assert done == [(0, 0), (0, 0)], "the check is not recorded"


def test_a_continued_run_checks_the_setup_with_an_episode_of_an_earlier_call(make_pool):
    pool, done = make_pool(crash={(1, 0): 9})
    pool.load()
    crashed, earlier = (EpisodeSpec("a", "toy", task, "C0", 0) for task in (1, 0))
    rows = list(pool.run([crashed], earlier))
    pool.close()
    assert [(row.task_id, row.cause) for row in rows] == [(1, CRASH)]
    assert done == [(0, 0)]


@pytest.mark.parametrize("died", [False, True])
def test_a_failure_of_the_policy_server_is_no_crash_of_an_episode(make_pool, died):
    class Server:
        def failure(self):
            if died:
                raise ConnectionRefusedError
            return "BatchingError: other actions"

    pool, _ = make_pool(crash={(0, 1): 1})
    pool._server = Server()
    what = "process has ended" if died else "BatchingError"
    rows = []
    pool.load()
    with pytest.raises(WorkerError, match=rf"(?s){what}.*server-0\.log"):
        rows.extend(pool.run([EpisodeSpec("a", "toy", 0, "C0", n) for n in range(3)]))
    pool.close()
    assert [row.episode for row in rows] == [0]


def test_a_policy_server_that_dies_while_it_loads_is_named(make_pool):
    class Server:
        def failure(self):
            raise EOFError

    pool, _ = make_pool(unloadable=[1])
    pool._server = Server()
    with pytest.raises(WorkerError, match=r"(?s)could not be loaded.*server-0\.log"):
        pool.load()
    pool.close()


@pytest.mark.parametrize("start", [1, 2])
def test_a_process_that_cannot_load_stops_the_run(make_pool, start):
    pool, _ = make_pool(crash={(0, 0): 1}, unloadable=[start])
    with pytest.raises(WorkerError, match=r"(?s)could not be loaded \(exit code -6\).*worker-0\.log"):
        run(pool, (0, 0), (0, 1))
