"""A compiled policy, as ``lerobot-rollout --use_torch_compile=true`` makes it, plans as before."""

from __future__ import annotations

import pytest
import torch
from lerobot.rollout.context import _wrap_predict_action_chunk_with_torch_compile
from tiny_policy import canonical_batch, chunk
from torch._dynamo.utils import counters

from lerobot_policy_multismolvla.processor_multismolvla import HealthStep
from multismolvla.modalities import default_view_map, padding_mask_key

VIEWS = default_view_map()


def look(*, absent=(), black=()):
    batch = {k: v[:1] for k, v in canonical_batch().items() if k != "action"}
    batch |= {key: torch.zeros_like(batch[key]) for key in black}
    gone = {padding_mask_key(key): torch.zeros(1, dtype=torch.bool) for key in absent}
    return HealthStep(views=VIEWS).observation(batch | gone)


@pytest.mark.slow
def test_a_lost_sensor_compiles_nothing_anew(make_policy):
    plain, compiled = make_policy(), make_policy()
    # compile_model=True does this with a backend that needs a C++ compiler and minutes
    compiled.model.sample_actions = torch.compile(compiled.model.sample_actions, backend="eager")
    assert _wrap_predict_action_chunk_with_torch_compile(compiled, backend="eager", mode=None)
    counters.clear()
    assert torch.equal(chunk(compiled, look()), chunk(plain, look()))
    graphs = counters["stats"]["unique_graphs"]
    assert graphs == 1, "the network, and no Python around it"
    for gone in (
        {"black": [VIEWS["image"]["rgb"]]},
        {"absent": list(VIEWS["image"].values())},
        {"absent": [streams["depth"] for streams in VIEWS.values()]},
    ):
        assert torch.equal(chunk(compiled, look(**gone)), chunk(plain, look(**gone)))
    assert counters["stats"]["unique_graphs"] == graphs
