"""Environments of LeRobot's types become sources; what they need is checked before anything is loaded."""

from __future__ import annotations

from types import SimpleNamespace

import gymnasium as gym
import pytest

from multismolvla_eval import environments as module
from multismolvla_eval.config import EnvironmentArguments
from multismolvla_eval.environments import LeRobotSource, load_sources


def test_libero_plus_is_asked_for_before_its_environments_are_made(monkeypatch, tmp_path):
    package = tmp_path / "libero" / "libero" / "benchmark"
    package.mkdir(parents=True)
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path / "libero")])
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(ModuleNotFoundError, match="needs LIBERO-Plus"):
        module._require_libero_plus()
    (package / "task_classification.json").write_text("{}")
    module._require_libero_plus()
    plain = tmp_path / "plain"
    (plain / "libero").mkdir(parents=True)
    spec.submodule_search_locations.insert(0, str(plain))
    with pytest.raises(ModuleNotFoundError, match=r"here is .*plain.*without hf-libero"):
        module._require_libero_plus()  # what is imported is what counts
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="here is None"):
        load_sources(EnvironmentArguments("libero_plus", "libero_spatial", None, {}))


def test_libero_is_told_its_configuration_before_it_is_imported(monkeypatch):
    from lerobot.envs.configs import EnvConfig

    calls = []
    monkeypatch.setattr(
        "lerobot_env_multismolvla.libero.setup.ensure_libero_config", lambda: calls.append("told")
    )
    monkeypatch.setattr(
        EnvConfig.get_choice_class("libero"), "create_envs", lambda self, **_: calls.append("made") or {}
    )
    monkeypatch.setattr(
        "lerobot_env_multismolvla.libero.setup.require_libero_assets", lambda suite: calls.append(suite)
    )
    monkeypatch.setattr(
        "lerobot_env_multismolvla.libero.setup.set_asset_root", lambda folder: calls.append("root")
    )
    assert load_sources(EnvironmentArguments("libero", "libero_spatial", None, {})) == {}
    assert calls == ["told", "libero_spatial", "root", "made"]


def test_lerobots_libero_reads_the_projects_assets_and_downloads_none(monkeypatch, tmp_path):
    from lerobot.envs.configs import EnvConfig

    from lerobot_env_multismolvla.libero.setup import ensure_libero_config

    ensure_libero_config()
    import libero.libero as libero_module

    monkeypatch.setattr(libero_module, "_assets_path_cache", None)
    monkeypatch.setattr(EnvConfig.get_choice_class("libero"), "create_envs", lambda self, **_: {})
    arguments = EnvironmentArguments("libero", "libero_goal", None, {})
    monkeypatch.setattr("lerobot_env_multismolvla.libero.setup.find_libero_assets", lambda explicit: None)
    with pytest.raises(FileNotFoundError, match="'libero_goal'.*assets"):
        load_sources(arguments)
    monkeypatch.setattr("lerobot_env_multismolvla.libero.setup.find_libero_assets", lambda explicit: tmp_path)
    assert load_sources(arguments) == {}
    assert libero_module.get_assets_path() == str(tmp_path)


def test_a_source_says_whether_its_environment_has_what_faults_need():
    def suite(presence, **attributes):
        space = gym.spaces.Dict({k: gym.spaces.Box(0, 1, (8,)) for k in presence})
        env = gym.Env()
        env.observation_space, env.action_space = space, gym.spaces.Box(-1, 1, (7,))
        for name, value in {"_max_episode_steps": 5, **attributes}.items():
            setattr(env, name, value)
        source = LeRobotSource(SimpleNamespace(type="made-up"), "s", {0: SimpleNamespace(envs=[env])})
        return source.facts().faultable

    assert suite(["presence"], cameras=("image",))
    assert not suite([], cameras=("image",))
    assert not suite(["presence"])


def test_lerobot_knows_the_environment_type_of_libero_plus_and_what_it_observes():
    from lerobot.envs.configs import EnvConfig
    from lerobot.envs.utils import env_to_policy_features

    config = EnvConfig.get_choice_class("libero_plus")(task="libero_goal", task_ids=[3])
    assert config.is_libero_plus
    assert config.gym_kwargs["task_ids"] == [3]
    assert {"observation.images.image", "observation.images.image2"} <= env_to_policy_features(config).keys()
    steps, after = config.get_env_processors()
    assert [type(s).__name__ for s in steps.steps] == ["LiberoProcessorStep"]
    assert list(after.steps) == []


def test_tasks_of_libero_plus_become_a_source_without_faults(monkeypatch):
    """With a stand-in for its environments: neither package nor assets are here."""
    from lerobot.envs.configs import EnvConfig

    pictures = gym.spaces.Dict({c: gym.spaces.Box(0, 255, (8, 8, 3)) for c in ("image", "image2")})
    env = gym.Env()
    env.observation_space = gym.spaces.Dict({"pixels": pictures})
    env.action_space = gym.spaces.Box(-1, 1, (7,))
    env.task_description, env._max_episode_steps, env._init_states = "a new language", 300, [0]
    monkeypatch.setattr("multismolvla_eval.environments._require_libero_plus", lambda: None)
    monkeypatch.setattr("lerobot_env_multismolvla.libero.setup.ensure_libero_config", lambda: None)
    monkeypatch.setattr(
        EnvConfig.get_choice_class("libero_plus"),
        "create_envs",
        lambda self, **_: {"libero_goal": {2590: SimpleNamespace(envs=[env])}},
    )
    arguments = EnvironmentArguments("libero_plus", "libero_goal", [2590], {})
    source = load_sources(arguments)["libero_goal"]
    assert source.cameras == ("image", "image2")
    facts = source.facts()
    assert facts.tasks == {2590: "a new language"}
    assert (facts.type, facts.max_steps, facts.init_states) == ("libero_plus", 300, 1)
    assert (facts.streams, facts.faultable, facts.init_state_splits) == (["rgb"], False, {})


def test_facts_of_our_environments_are_known_before_a_simulator_starts():
    (source,) = load_sources(
        EnvironmentArguments(task_ids=[0, 2], options={"fps": 10}), to_run=False
    ).values()
    facts = source.facts()
    assert facts.init_states == 1000
    assert facts.init_state_splits == {"eval": [0, 999]}
    assert (list(facts.tasks), facts.fps, facts.assets_standins) == ([0, 2], 10, False)
    assert facts.streams == ["rgb", "depth", "seg", "thermal"]
