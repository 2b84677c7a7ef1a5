"""LeRobot finds the environment by name, synchronous and asynchronous, and importing it is cheap."""

import subprocess
import sys

import numpy as np
import pytest
from lerobot.envs.factory import make_env, make_env_config, make_env_pre_post_processors
from lerobot.envs.utils import env_to_policy_features, preprocess_observation

import lerobot_env_multismolvla  # noqa: F401
from lerobot_env_multismolvla.mini import MAX_STEPS


def test_import_starts_no_simulator():
    code = (
        "import sys, lerobot_env_multismolvla;"
        "heavy = {'mujoco', 'robosuite', 'libero', 'OpenGL'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdin=subprocess.DEVNULL)


def test_features_are_what_the_processed_batch_holds():
    features = env_to_policy_features(make_env_config("multismolvla_libero"))
    assert features["observation.state"].shape == (8,)
    assert features["observation.images.image2_depth"].shape == (1, 64, 64)
    assert features["observation.images.image_seg"].shape == (3, 64, 64)
    assert len(features) == 11


@pytest.mark.sim
@pytest.mark.slow
@pytest.mark.parametrize("asynchronous", [False, True])
def test_vector_envs_run_and_agree(asynchronous, mini_env):
    config = make_env_config("multismolvla_libero", task_ids=[1])
    envs = make_env(config, n_envs=2, use_async_envs=asynchronous)
    assert list(envs) == ["multismolvla_mini"]
    env = envs["multismolvla_mini"][1]
    try:
        observation, info = env.reset(seed=[3, 4])
        assert info["init_state_id"].tolist() == [0, 1]
        alone, _ = mini_env(1).reset(seed=4, options={"init_state_id": 1})
        assert (observation["pixels"]["image2_thermal"][1] == alone["pixels"]["image2_thermal"]).all()
        assert (observation["image_depth"][1] == alone["image_depth"]).all()
        preprocessor, _ = make_env_pre_post_processors(config, None)
        batch = preprocessor(preprocess_observation(observation))
        assert batch["observation.images.image_depth"].shape == (2, 1, 64, 64)
        assert batch["observation.images.image_depth_padding_mask"].tolist() == [True, True]
        _, _, terminated, _, _ = env.step(np.zeros((2, 7), np.float32))
        assert not terminated.any()
        assert list(env.call("task_description")) == ["put the can on the plate"] * 2
        assert list(env.call("_max_episode_steps")) == [MAX_STEPS] * 2
    finally:
        env.close()


def test_facts_are_those_that_an_evaluation_records(mini_env):
    import dataclasses

    from multismolvla_eval.records.schema import SuiteFacts

    facts = mini_env(1).facts
    assert {f.name for f in dataclasses.fields(facts)} == set(SuiteFacts.__struct_fields__)
    assert facts.tasks == {1: "put the can on the plate"}
    assert (facts.max_steps, facts.init_states, facts.init_state_splits) == (
        MAX_STEPS,
        1000,
        {"eval": (0, 999)},
    )
    assert facts.streams == ("rgb", "depth", "seg", "thermal")
    assert set(facts.provenance.values()) == {"sensor"}
    assert facts.assets_standins is False


@pytest.mark.sim
def test_unknown_suite_and_task_are_named():
    with pytest.raises(ValueError, match="libero_nowhere"):
        make_env(make_env_config("multismolvla_libero", task="libero_nowhere"))
    with pytest.raises(ValueError, match="7"):
        make_env(make_env_config("multismolvla_libero", task_ids=[7]))


def test_libero_suite_without_assets_says_what_to_do(tmp_path, monkeypatch):
    from multismolvla.system.libero_assets import find_libero_assets

    monkeypatch.setenv("MULTISMOLVLA_LIBERO_ASSETS", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="scenes"):
        find_libero_assets()


def test_configuration_is_written_once_and_respected(tmp_path, monkeypatch):
    from lerobot_env_multismolvla.libero.setup import ensure_libero_config

    monkeypatch.delenv("LIBERO_CONFIG_PATH", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    written = ensure_libero_config()
    assert written.is_relative_to(tmp_path / "cache")
    assert "bddl_files: " in written.read_text()
    assert ensure_libero_config() == written
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "config.yaml").write_text("bddl_files: /x\n")
    monkeypatch.setenv("LIBERO_CONFIG_PATH", str(tmp_path / "own"))
    assert ensure_libero_config().read_text() == "bddl_files: /x\n"


def test_a_suite_without_the_third_camera_has_it_announced_as_absent():
    """Suites of one run share a processor step; LIBERO's lack the mini suite's third camera."""
    import torch

    config = make_env_config("multismolvla_libero", task="multismolvla_mini,libero_object")
    step = config.get_env_processors()[0].steps[0]
    masks = step.observation({"observation.presence": torch.ones(1, 8)})
    assert masks["observation.images.image2_depth_padding_mask"].all()
    assert not masks["observation.images.image3_padding_mask"].any()
    assert make_env_config("multismolvla_libero", task="libero_object").cameras == ("image", "image2")
    with pytest.raises(ValueError, match="presence.*12"):
        step.observation({"observation.presence": torch.ones(1, 16)})
