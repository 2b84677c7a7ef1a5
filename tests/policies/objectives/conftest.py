"""Tiny policies with objectives, and batches that say task, episode and frame."""

from __future__ import annotations

from pathlib import Path

import pytest
from lerobot.configs.policies import PreTrainedConfig
from policy_fixtures import hub, make_config, make_policy, tiny_dataset  # noqa: F401
from tiny_dataset import write_dataset
from training_batch import TASKS, training_batch

from lerobot_policy_multismolvla.modeling_multismolvla import MultiSmolVLAPolicy
from multismolvla.objectives.options import ObjectivesOptions, RlbindOptions, RobultOptions


@pytest.fixture
def batch():
    return training_batch()


@pytest.fixture(scope="session")
def pictures_alone(tmp_path_factory) -> Path:
    """A data set of the same cameras without state, actions and instruction."""
    folder = tmp_path_factory.mktemp("second") / "pictures"
    return write_dataset(folder, without=("observation.state", "action"), seed=1, task="")


@pytest.fixture
def stage_one(make_policy, tmp_path) -> Path:  # noqa: F811
    """A checkpoint of stage 1 without objectives."""
    make_policy(stage="connector").save_pretrained(tmp_path / "one")
    return tmp_path / "one"


@pytest.fixture
def train(stage_one):
    """A policy that goes on from stage 1: objectives by name, ``{"robult": {"weight": 1.0}}``."""

    def make(robult=(), rlbind=(), tasks=TASKS, dataset_meta=None, training=True, **options):
        config = PreTrainedConfig.from_pretrained(stage_one)
        config.pretrained_path = stage_one
        config.stage, config.curriculum_steps, config.curriculum_seed = "robust", 100, 0
        config.objectives = ObjectivesOptions(
            robult=RobultOptions(**dict(robult)), rlbind=RlbindOptions(**dict(rlbind)), tasks=list(tasks)
        )
        for name, value in options.items():
            place = config.objectives if hasattr(config.objectives, name) else config
            setattr(place, name, value)
        config.__post_init__()
        policy = MultiSmolVLAPolicy.from_pretrained(stage_one, config=config, dataset_meta=dataset_meta)
        return policy.train() if training else policy

    return make
