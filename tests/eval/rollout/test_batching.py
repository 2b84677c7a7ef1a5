"""Batches of action chunks: nobody's result depends on the others."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from multismolvla.corruption import CLEAN, parse_condition
from multismolvla_eval.policies.interface import Look, Request
from multismolvla_eval.protocol.schedule import CLIP_CANDIDATES, Counts, EpisodeSpec, episodes
from multismolvla_eval.records.schema import PolicyFacts
from multismolvla_eval.rollout.batching import BatchingError, ChunkBatcher
from multismolvla_eval.rollout.clips import keeps_clip
from multismolvla_eval.rollout.server import BatchServer

SIZE = 3


def request(seed: int, policy: str = "p", first: bool = False, width: int = 5) -> Request:
    rng = np.random.default_rng(seed)
    arrays = {
        "observation.state": rng.standard_normal((1, width), np.float32),
        "observation.images.image_padding_mask": np.array([True]),
    }
    return Request(policy, arrays, {"noise": rng.standard_normal((1, 4, 7), np.float32)}, first)


class Chunks:
    """A policy: the chunk is the state's sum times the noise."""

    def __init__(self, meddle=lambda actions: actions) -> None:
        self.meddle, self.sizes = meddle, []

    def facts(self):
        return PolicyFacts(path="p", type="toy", checkpoint="c")

    def chunk(self, batch, noise):
        self.sizes.append(len(noise))
        return self.meddle(batch["observation.state"].sum(1)[:, None, None] * noise)

    def look(self, row, first):
        return Look({"rgb": f"row {row}"} if first else None, modality_weight={"rgb": row / 10})


def test_every_batch_has_the_same_size_and_no_row_sees_another():
    chunks = Chunks()
    made = ChunkBatcher(chunks, SIZE)
    requests = [request(i, first=i == 1) for i in range(SIZE)]
    together = made.answer(requests)
    for company in ([0], [1], [2, 0], [1, 2, 0]):
        for i, reply in zip(company, made.answer([requests[i] for i in company]), strict=True):
            assert reply.actions.tobytes() == together[i].actions.tobytes()
    assert set(chunks.sizes) == {SIZE}
    assert [r.look.encoder_inputs for r in together] == [None, {"rgb": "row 1"}, None]
    assert [r.look.modality_weight["rgb"] for r in together] == [0.0, 0.1, 0.2]


@pytest.mark.parametrize(
    ("meddle", "message"),
    [
        (lambda a: a + 1e-7 * a.mean(), "the other rows of the batch"),
        (lambda a: a + 1e-6 * torch.arange(len(a))[:, None, None], "its place in the batch"),
    ],
)
def test_a_policy_whose_rows_depend_on_each_other_is_refused(meddle, message):
    with pytest.raises(BatchingError, match=rf"(?s){message}.*--batch_size=1"):
        ChunkBatcher(Chunks(meddle), SIZE).answer([request(0)])


def test_a_row_that_is_not_a_number_changes_no_other():
    made = ChunkBatcher(Chunks(), SIZE)
    requests = [request(i) for i in range(SIZE)]
    healthy = made.answer(requests)
    requests[1].arrays["observation.state"][:] = np.nan
    replies = made.answer(requests)
    assert np.isnan(replies[1].actions).all()
    for i in (0, 2):
        assert replies[i].actions.tobytes() == healthy[i].actions.tobytes()


def ask(server: BatchServer, *requests: Request):
    """What simulators are answered that ask at the same time."""
    with ThreadPoolExecutor(len(requests)) as simulators:
        return list(simulators.map(server.answer, requests))


def test_the_server_answers_in_batches_and_tells_facts():
    chunks = Chunks()
    made = ChunkBatcher(chunks, SIZE)
    server = BatchServer(lambda: {"p": made}, simulators=2)
    assert server.facts("p").type == "toy"
    expected = server.answer(request(0))  # also proves the policy: three batches
    made.seconds = 5.0  # as if a batch took so long: waiting for others pays
    before = len(chunks.sizes)
    one, two = ask(server, request(0), request(1))
    assert one.actions.tobytes() == expected.actions.tobytes()
    assert two.actions.shape == (4, 7)
    assert len(chunks.sizes) == before + 1, "both in one batch"
    made.seconds = 0.1
    assert server.answer(request(2)).actions.shape == (4, 7), "who waits for others does not wait for ever"


def test_many_simulators_get_each_its_own_answer():
    server = BatchServer(lambda: {"p": ChunkBatcher(Chunks(), SIZE)}, simulators=8)
    requests = [request(i, width=5 + i % 2) for i in range(40)]
    for asked, reply in zip(requests, ask(server, *requests), strict=True):
        expected = asked.arrays["observation.state"].sum() * asked.noise["noise"][0]
        assert np.allclose(reply.actions, expected, atol=1e-5)


def test_all_that_wait_hear_of_a_policy_that_cannot_be_loaded_or_batched():
    def broken():
        raise FileNotFoundError("no weights")

    with pytest.raises(FileNotFoundError, match="no weights"):
        BatchServer(broken, simulators=1).facts("p")
    server = BatchServer(lambda: {"p": ChunkBatcher(Chunks(lambda a: a + a.mean()), SIZE)}, simulators=2)
    assert not server.failure()
    for asked in (request(0), request(1)):
        with pytest.raises(BatchingError):
            server.answer(asked)
    assert server.failure().startswith("BatchingError: ")


def test_first_failures_are_filmed_and_every_clean_twin():
    failures = set()

    def kept(condition, outcomes):
        return [
            keeps_clip(EpisodeSpec("p", "toy", 0, condition, n), success, failures)
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
    assert all(e.task_id == 0 and e.repeat == 0 for e in plan if e.clip)
