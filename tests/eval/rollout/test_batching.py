"""Batches of action chunks: nobody's result depends on the others, and nobody's death harms them."""

from __future__ import annotations

import threading
from dataclasses import replace
from multiprocessing import Pipe

import numpy as np
import pytest
import torch

from multismolvla.corruption import CLEAN, parse_condition
from multismolvla.system.files import write_json
from multismolvla_eval.config import EnvironmentArguments
from multismolvla_eval.policies.interface import EncoderDoor
from multismolvla_eval.policies.messages import Request, WorkerArguments
from multismolvla_eval.protocol.schedule import CLIP_CANDIDATES, Counts, Episode, episodes
from multismolvla_eval.records.manifest import build_manifest
from multismolvla_eval.records.store import ResultsError
from multismolvla_eval.rollout.batching import BatchingError, ChunkBatcher
from multismolvla_eval.rollout.clips import keeps_clip
from multismolvla_eval.rollout.pool import WorkerError, WorkerPool
from multismolvla_eval.rollout.server import _Server

SIZE = 3


def request(seed: int, policy: str = "p", look: bool = False, width: int = 5) -> Request:
    rng = np.random.default_rng(seed)
    arrays = {
        "observation.state": rng.standard_normal((1, width), np.float32),
        "observation.images.image_padding_mask": np.array([True]),
    }
    return Request(policy, arrays, {"noise": rng.standard_normal((1, 4, 7), np.float32)}, look)


class Chunks:
    """A policy: the chunk is the state's sum times the noise."""

    def __init__(self, meddle=lambda actions: actions) -> None:
        self.meddle, self.sizes = meddle, []

    def __call__(self, batch, noise):
        self.sizes.append(len(noise))
        return self.meddle(batch["observation.state"].sum(1)[:, None, None] * noise)

    def door(self, row):
        return EncoderDoor({"rgb": f"row {row}"}, {})


def batcher(chunks: Chunks, size: int = SIZE) -> ChunkBatcher:
    return ChunkBatcher("p", chunks, chunks.door, lambda row: {"rgb": row / 10}, size, "cpu")


def test_every_batch_has_the_same_size_and_no_row_sees_another():
    chunks = Chunks()
    made = batcher(chunks)
    requests = [request(i, look=i == 1) for i in range(SIZE)]
    together = made.answer(requests)
    for company in ([0], [1], [2, 0], [1, 2, 0]):
        for i, reply in zip(company, made.answer([requests[i] for i in company]), strict=True):
            assert reply.actions.tobytes() == together[i].actions.tobytes()
    assert set(chunks.sizes) == {SIZE}
    assert together[1].door.hashes == {"rgb": "row 1"}
    assert together[0].door is together[2].door is None
    assert [reply.trust["rgb"] for reply in together] == [0.0, 0.1, 0.2]


@pytest.mark.parametrize(
    ("meddle", "message"),
    [
        (lambda a: a + 1e-7 * a.mean(), "the other rows of the batch"),
        (lambda a: a + 1e-6 * torch.arange(len(a))[:, None, None], "its place in the batch"),
    ],
)
def test_a_policy_whose_rows_depend_on_each_other_is_refused(meddle, message):
    with pytest.raises(BatchingError, match=rf"(?s){message}.*--batch_size=1"):
        batcher(Chunks(meddle)).answer([request(0)])
    batcher(Chunks(meddle), size=1).answer([request(0)])


def test_requests_of_different_shapes_do_not_share_a_batch():
    with pytest.raises(ValueError, match="of one kind"):
        batcher(Chunks()).answer([request(0), request(1, width=6)])


@pytest.fixture
def serving():
    """A server thread with the policy ``p``, and the way to new simulators' connections."""
    chunks = Chunks()
    ours, theirs = Pipe()
    made = batcher(chunks)
    thread = threading.Thread(target=_Server(theirs, {"p": made}, {"p": {"type": "toy"}}).run)
    thread.start()

    def simulator():
        here, there = Pipe()
        ours.send(there)
        there.close()
        return here

    yield simulator, chunks, made
    ours.close()
    thread.join(10)
    assert not thread.is_alive()


def test_the_server_answers_in_batches_and_tells_facts(serving):
    simulator, chunks, made = serving
    one, two = simulator(), simulator()
    for connection in (one, two):
        connection.send("p")
        assert connection.recv() == {"type": "toy"}
    one.send(request(0))
    expected = one.recv()  # also proves the policy: three batches
    made.seconds = 5.0  # as if a batch took so long: waiting for company pays
    before = len(chunks.sizes)
    one.send(request(0))
    two.send(request(1))
    assert one.recv().actions.tobytes() == expected.actions.tobytes()
    assert two.recv().actions.shape == (4, 7)
    assert len(chunks.sizes) == before + 1, "both in one batch"


def test_a_simulator_that_dies_while_waiting_delays_nobody(serving):
    simulator, _, made = serving
    one, two = simulator(), simulator()
    one.send(request(0))
    one.recv()
    made.seconds = 60.0
    two.send(request(1))
    two.close()
    one.send(request(2))
    assert one.poll(10)


def pool_of(tmp_path, monkeypatch, workers=2, timeout=60.0, **options) -> WorkerPool:
    import toy_processes

    monkeypatch.setattr("multismolvla_eval.rollout.pool.worker_main", toy_processes.worker_main)
    monkeypatch.setattr("multismolvla_eval.rollout.pool.server_main", toy_processes.server_main)
    first = WorkerArguments(
        0, EnvironmentArguments("toy", "toy", None, options), {}, None, 0, tmp_path, (), {}, batch_size=2
    )
    return WorkerPool([replace(first, number=i) for i in range(workers)], timeout, timeout)


def run(pool: WorkerPool, episodes: list[Episode], proven: Episode | None = None):
    rows, crashes = [], []
    try:
        pool.describe()
        pool.run(
            episodes,
            lambda r: rows.append((r["task_id"], r["episode"])),
            lambda e, cause: crashes.append((e.task_id, e.episode, cause)),
            proven,
        )
    finally:
        pool.close()
    return sorted(rows), crashes


def episodes_of(*places: tuple[int, int]) -> list[Episode]:
    return [Episode("p", "toy", task, "C0", number) for task, number in places]


EPISODES = [Episode("p", "toy", task, "C0", i) for i in range(3) for task in range(2)]


def test_deaths_of_the_server_and_of_a_simulator_are_one_episodes_failure_each(tmp_path, monkeypatch):
    rows, crashes = run(pool_of(tmp_path, monkeypatch, deadly=[[0, 1]], crash=[[1, 0]]), EPISODES)
    assert rows == [(0, 0), (0, 2), (1, 1), (1, 2)]
    assert sorted(crashes) == [
        (0, 1, "crash of the policy server: exit code -6"),
        (1, 0, "crash: exit code -6"),
    ]


@pytest.fixture
def threads(tmp_path, monkeypatch):
    """Pools whose processes are threads; see :mod:`toy_threads`."""
    import toy_threads

    monkeypatch.setattr("multismolvla_eval.rollout.pool.worker_main", toy_threads.worker_main)
    monkeypatch.setattr("multismolvla_eval.rollout.pool.server_main", toy_threads.server_main)
    monkeypatch.setattr("multismolvla_eval.rollout.pool.POLL_S", 0.05)

    def make(workers=1, timeout=60.0, load_timeout=60.0, **options):
        environment = EnvironmentArguments("toy", "toy", None, {"done": [], "starts": [], **options})
        first = WorkerArguments(0, environment, {}, None, 0, tmp_path, (), {}, batch_size=2)
        pool = WorkerPool([replace(first, number=i) for i in range(workers)], timeout, load_timeout)
        pool._context = toy_threads.Context()
        return pool, environment.options["done"]

    return make


@pytest.mark.parametrize("workers", [1, 3])
def test_a_task_that_always_crashes_does_not_stop_the_others(threads, workers):
    crashing, others = [(0, i) for i in range(5)], [(1, 0), (1, 1)]
    pool, done = threads(workers, crash=crashing)
    rows, crashes = run(pool, episodes_of(*crashing, *others))
    assert rows == others, "each once"
    assert set(done) == set(others)
    if workers == 1:  # with several, the last crash may come after all others and ask for one more trial
        assert done == others, "the trial was an episode to come"
    assert sorted(crashes) == [(*place, "crash: exit code -6") for place in crashing]


def test_a_crash_at_the_end_is_recorded_after_an_episode_that_finished_runs_again(threads):
    pool, done = threads(crash=[(0, 1)])
    assert run(pool, episodes_of((0, 0), (0, 1))) == ([(0, 0)], [(0, 1, "crash: exit code -6")])
    assert done == [(0, 0), (0, 0)]
    pool, done = threads(crash=[(0, 1)])  # a later call has nothing else to do
    assert run(pool, episodes_of((0, 1)), proven=episodes_of((0, 0))[0]) == (
        [],
        [(0, 1, "crash: exit code -6")],
    )
    assert done == [(0, 0)]


@pytest.mark.parametrize(
    ("options", "places", "recorded", "message"),
    [
        ({"at_most": 1}, [(0, i) for i in range(9)], [(0, 0)], r"4 episode\(s\).*had finished before"),
        (
            {"at_most": 0},
            [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0)],
            [],
            r"4 episode.*\|1\|C0.*to be unlike the others",
        ),
        ({"at_most": 0}, [(0, 0)], [], r"1 episode\(s\).*none is left to try"),
    ],
)
def test_a_setup_that_breaks_stops_the_run_and_no_crash_is_recorded(
    threads, options, places, recorded, message
):
    pool, done = threads(**options)
    crashes = []
    pool.describe()
    with pytest.raises(
        WorkerError, match=rf"(?s){message}.*the same command continues.*End of .*worker-0.log"
    ):
        pool.run(episodes_of(*places), lambda row: None, lambda *crash: crashes.append(crash))
    pool.close()
    assert done == recorded
    assert crashes == []


@pytest.mark.parametrize(
    ("option", "cause"),
    [
        ("hang", "stuck: no end after 0.5 s"),
        ("mute", "stuck: the policy server does not answer"),
        ("deadly", "crash of the policy server: exit code -6"),
    ],
)
def test_what_hangs_or_dies_in_the_simulator_or_the_server_is_one_episodes_failure(threads, option, cause):
    pool, _ = threads(workers=2, timeout=0.5, **{option: [(0, 1)]})
    rows, crashes = run(pool, EPISODES)
    assert rows == [(0, 0), (0, 2), (1, 0), (1, 1), (1, 2)]
    assert crashes == [(0, 1, cause)]


def test_a_replacement_that_cannot_load_tries_again_but_not_for_ever(threads):
    places = [(1, 0), (0, 0), (1, 1)]
    pool, _ = threads(crash=[(0, 0)], unloadable=(2, 3))
    assert run(pool, episodes_of(*places)) == ([(1, 0), (1, 1)], [(0, 0, "crash: exit code -6")])
    pool, done = threads(crash=[(0, 0)], unloadable=(2, 3, 4))
    with pytest.raises(
        WorkerError, match=r"(?s)could not be loaded \(exit code -6\).*the same command continues"
    ):
        run(pool, episodes_of(*places))
    assert done == [(1, 0)]


LATE = r"could not be loaded \(not ready after --load_timeout=0.3 s\)\n.*worker-0.log"


def test_what_never_gets_ready_is_ended_and_tried_again_but_not_for_ever(threads):
    places = [(1, 0), (0, 0), (1, 1)]
    pool, _ = threads(load_timeout=0.3, crash=[(0, 0)], late=(2, 3))
    assert run(pool, episodes_of(*places)) == ([(1, 0), (1, 1)], [(0, 0, "crash: exit code -6")])
    pool, done = threads(load_timeout=0.3, crash=[(0, 0)], late=(2, 3, 4))
    with pytest.raises(WorkerError, match=LATE):
        run(pool, episodes_of(*places))
    assert done == [(1, 0)]
    pool, _ = threads(load_timeout=0.3, late=(1,))
    with pytest.raises(WorkerError, match=LATE):
        run(pool, episodes_of(*places))
    pool, _ = threads(load_timeout=0.3, timeout=0.3, late_server=True)
    with pytest.raises(WorkerError, match=LATE.replace("worker-0", "server-0")):
        run(pool, episodes_of(*places))


def test_a_row_that_is_not_a_number_changes_no_other():
    made = batcher(Chunks())
    requests = [request(i) for i in range(SIZE)]
    healthy = made.answer(requests)
    requests[1].arrays["observation.state"][:] = np.nan
    replies = made.answer(requests)
    assert np.isnan(replies[1].actions).all()
    for i in (0, 2):
        assert replies[i].actions.tobytes() == healthy[i].actions.tobytes()


def test_a_server_that_cannot_load_records_nothing(tmp_path, monkeypatch):
    with pytest.raises(WorkerError, match="the toy server is broken on purpose"):
        run(pool_of(tmp_path, monkeypatch, workers=1, broken=True), EPISODES)


def test_the_batch_size_is_part_of_the_runs_identity(make_config):
    suite = {"tasks": {"0": "t"}, "type": "toy", "max_steps": 6, "assets": "x", "labels": []}
    facts = {"suites": {"toy": suite}, "cameras": ["image"], "policies": {"ours": {"checkpoint": "a"}}}
    config = make_config(policies=["ours=builtin:zero"], batch_size=4)
    config.output.mkdir()
    write_json(config.output / "run.json", build_manifest(config, facts, [CLEAN], Counts(1, 1), []))
    for other in (1, 2):
        config.batch_size = other
        with pytest.raises(ResultsError, match=r"\['batch_size'\] differ"):
            build_manifest(config, facts, [CLEAN], Counts(1, 1), [])


def test_first_failures_are_filmed_and_every_clean_twin():
    failures = set()

    def kept(condition, outcomes):
        return [
            keeps_clip(Episode("p", "toy", 0, condition, n), success, failures)
            for n, success in enumerate(outcomes)
        ]

    assert kept("C0", [True, True, False]) == [True, True, True]
    assert kept("C1:-rgb", [True, True, False]) == [True, False, True]
    assert kept("C2:rgb=zero", [False, False, True]) == [True, False, False]
    plan = episodes(["p"], {"toy": [0, 1]}, [CLEAN, parse_condition("C1:-rgb")], Counts(5, 5, 2), clips=1)
    filmed = {(e.condition, e.episode) for e in plan if e.clip}
    assert (
        {n for c, n in filmed if c == "C0"}
        == {n for c, n in filmed if c != "C0"}
        == set(range(CLIP_CANDIDATES))
    )
    assert all(e.task_id == 0 and e.seed == 0 for e in plan if e.clip)
