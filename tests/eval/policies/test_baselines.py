"""Any LeRobot policy in the harness, and the baselines that say what its score means, on the mini suite."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

pytestmark = [pytest.mark.sim]

HERE = Path(__file__).parent
STEPS = 5
SUITE = "multismolvla_mini"


def save(policy, folder: Path) -> str:
    from lerobot.policies.factory import make_pre_post_processors

    stats = {
        "observation.state": {"mean": torch.zeros(8), "std": torch.ones(8)},
        "action": {"mean": torch.zeros(7), "std": torch.ones(7)},
    }
    policy.save_pretrained(folder)
    for processor in make_pre_post_processors(policy.config, dataset_stats=stats):
        processor.save_pretrained(folder)
    return str(folder)


def tiny_act(folder: Path, camera: str = "image", action_dim: int = 7) -> str:
    """An untrained ACT that reads one RGB camera."""
    from lerobot.configs import FeatureType, PolicyFeature
    from lerobot.policies.act.configuration_act import ACTConfig
    from lerobot.policies.act.modeling_act import ACTPolicy

    torch.manual_seed(0)
    config = ACTConfig(
        input_features={
            f"observation.images.{camera}": PolicyFeature(FeatureType.VISUAL, (3, 64, 64)),
            "observation.state": PolicyFeature(FeatureType.STATE, (8,)),
        },
        output_features={"action": PolicyFeature(FeatureType.ACTION, (action_dim,))},
        chunk_size=2, n_action_steps=2, dim_model=16, n_heads=2, dim_feedforward=16, n_encoder_layers=1,
        n_decoder_layers=1, n_vae_encoder_layers=1, use_vae=False, pretrained_backbone_weights=None,
        device="cpu", push_to_hub=False,
        normalization_mapping={"VISUAL": "IDENTITY", "STATE": "MEAN_STD", "ACTION": "MEAN_STD"},
    )  # fmt: skip
    if action_dim != 7:  # only its configuration is read
        folder.mkdir(parents=True)
        config.save_pretrained(folder)
        return str(folder)
    return save(ACTPolicy(config), folder)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """ACT with two names for its camera, SmolVLA, and our policy around its weights with either tower."""
    from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
    from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
    from tiny_policy import SIDE, TINY, actions, all_features, common_options, rgb_features

    from lerobot_policy_multismolvla.configuration_multismolvla import MultiSmolVLAConfig
    from lerobot_policy_multismolvla.mini.tiny_vlm import build_tiny_vlm
    from lerobot_policy_multismolvla.modeling_multismolvla import MultiSmolVLAPolicy
    from multismolvla.fourm import MINI_DOMAINS, FourMConfig, FourMEncoder

    root = tmp_path_factory.mktemp("policies")
    build_tiny_vlm(root / "vlm", TINY)
    torch.manual_seed(0)
    options = {**common_options(root), "input_features": rgb_features(), "output_features": actions()}
    paths = {
        "act": tiny_act(root / "act"),
        "act_top": tiny_act(root / "act_top", "top"),
        "smolvla": save(SmolVLAPolicy(SmolVLAConfig(**options)), root / "smolvla"),
    }
    ours = MultiSmolVLAConfig(
        **options, vision_tower="siglip", base_checkpoint=str(root / "smolvla"), dtype="float32",
        views={c: {"rgb": f"observation.images.{c}"} for c in ("image", "image2")},
    )  # fmt: skip
    paths["siglip"] = save(MultiSmolVLAPolicy(ours), root / "siglip")
    sizes = FourMConfig.mini(32, 2, 2)
    FourMEncoder(sizes, list(MINI_DOMAINS.values())).save_pretrained(root / "encoder")
    ours = MultiSmolVLAConfig(
        **{**options, "input_features": all_features()}, encoder=str(root / "encoder"), domains=MINI_DOMAINS,
        image_size=SIDE, fusion_grid=8, connector_grid=8, connector_hidden=64, dtype="float32",
        base_checkpoint=str(root / "smolvla"),
    )  # fmt: skip
    paths["fourm"] = save(MultiSmolVLAPolicy(ours), root / "fourm")
    return paths


def episode_of(source, policy, condition="C0", repeat=0):
    from multismolvla_eval.protocol.schedule import EpisodeSpec
    from multismolvla_eval.rollout.episode import run_episode

    return run_episode(EpisodeSpec("p", SUITE, 0, condition, 0, repeat=repeat), source, policy, 0)


def test_upstream_smolvla_and_our_siglip_tower_act_the_same(checkpoints, source):
    from multismolvla_eval.policies.load import load_policy

    rows = {
        (name, condition, repeat): episode_of(
            source, load_policy(checkpoints[name], source), condition, repeat
        )
        for name in ("smolvla", "siglip")
        for condition, repeat in (("C0", 0), ("C0", 1), ("C2:rgb=zero", 0))
    }
    for (name, condition, repeat), row in rows.items():
        twin = rows["smolvla" if name == "siglip" else "siglip", condition, repeat]
        assert row.actions == twin.actions
        assert (row.steps, row.success, row.start) == (twin.steps, twin.success, twin.start)
    assert len({r.actions for r in rows.values()}) == 3, "another repetition or other pictures, other actions"
    first, second = (rows["smolvla", "C0", repeat] for repeat in (0, 1))
    assert first.noise_seed != second.noise_seed
    assert first.init_state == second.init_state


def test_a_camera_of_another_name_is_named_with_the_remedy_and_the_remedy_works(checkpoints, source):
    from multismolvla_eval.policies.load import load_policy

    with pytest.raises(ValueError, match=r"\['observation.images.top'\].*--rename_map=") as error:
        load_policy(checkpoints["act_top"], source)
    remedy = json.loads(str(error.value).split("--rename_map='")[1].split("'")[0])
    assert remedy == {"observation.images.image": "observation.images.top"}
    renamed = episode_of(source, load_policy(checkpoints["act_top"], source, rename_map=remedy))
    plain = episode_of(source, load_policy(checkpoints["act"], source))
    assert renamed.actions == plain.actions, "same weights, same pictures"
    with pytest.raises(ValueError, match="'observation.images.left'"):
        load_policy(
            checkpoints["act"], source, rename_map={"observation.images.left": "observation.images.image"}
        )


def test_a_policy_of_another_robot_is_refused(source, tmp_path):
    from multismolvla_eval.policies.load import load_policy

    with pytest.raises(ValueError, match="14 .* 7"):
        load_policy(tiny_act(tmp_path / "aloha", action_dim=14), source)


def test_pictures_of_another_size_or_the_state_of_the_world_are_refused(checkpoints):
    from lerobot.configs import FeatureType, PolicyFeature
    from lerobot.configs.policies import PreTrainedConfig

    from multismolvla_eval.policies.features import check_features

    state = PolicyFeature(FeatureType.STATE, (8,))
    features = {
        "observation.images.image": PolicyFeature(FeatureType.VISUAL, (3, 256, 256)),
        "observation.state": state,
    }
    act, smolvla = (PreTrainedConfig.from_pretrained(checkpoints[name]) for name in ("act", "smolvla"))
    with pytest.raises(ValueError, match=r"64x64.*256x256.*observation_height: 64"):
        check_features("act", act, features, {})
    check_features("smolvla", smolvla, features, {})  # it resizes, and goes on with one camera of two
    act.input_features = {"observation.environment_state": PolicyFeature(FeatureType.ENV, (9,))}
    with pytest.raises(ValueError, match="the state of the world"):
        check_features("act", act, features, {})


def test_an_announced_loss_stays_announced_under_another_name():
    from multismolvla_eval.policies.features import with_masks

    renamed = with_masks({"observation.images.image": "observation.images.top"})
    assert renamed["observation.images.image_padding_mask"] == "observation.images.top_padding_mask"


def test_a_policy_without_vision_does_not_see(checkpoints, source):
    """Its actions do not depend on the pictures; a policy that sees acts differently."""
    from multismolvla_eval.policies.load import load_policy

    for name in ("act", "smolvla", "siglip", "fourm"):
        seeing, blind = (load_policy(p + checkpoints[name], source) for p in ("", "no_vision:"))
        clean = episode_of(source, blind)
        assert clean.actions == episode_of(source, blind, "C2:rgb=zero").actions
        assert clean.actions != episode_of(source, seeing).actions, name
        facts = blind.facts()
        assert facts.reads == ["observation.state"]
        assert ("announced" in facts.no_vision) == (name != "act")
        assert clean.checkpoint == facts.checkpoint == f"no_vision:{seeing.facts().checkpoint}"


def test_health_can_be_switched_off(checkpoints, source):
    """A black picture counts as absent, unless the same checkpoint takes it for what it is."""
    from multismolvla_eval.policies.load import load_policy

    careful, trusting = (load_policy(p + checkpoints["fourm"], source) for p in ("", "no_health:"))
    black, lost = (episode_of(source, careful, c) for c in ("C2:rgb=zero", "C1:-rgb"))
    believed = episode_of(source, trusting, "C2:rgb=zero")
    assert black.actions == lost.actions != believed.actions
    assert believed.checkpoint == f"no_health:{black.checkpoint}"
    assert careful.config.on_blind == "act"  # a robot would hold
    with pytest.raises(ValueError, match="no_health:.*smolvla"):
        load_policy("no_health:" + checkpoints["smolvla"], source)


def test_pictures_are_emptied_and_announced_as_absent():
    from multismolvla_eval.policies.baselines import without_pictures

    key = "observation.images.image"
    batch = {
        key: torch.rand(1, 3, 4, 4),
        f"{key}_depth": torch.rand(1, 1, 4, 4),
        "observation.state": torch.rand(1, 8),
    }
    blind = without_pictures(batch)
    assert blind[key].unique().tolist() == [0.5]
    assert blind[f"{key}_depth"].unique().tolist() == [0.0]
    assert not blind[f"{key}_padding_mask"].any()
    assert torch.equal(blind["observation.state"], batch["observation.state"])


def test_the_expert_solves_the_task_and_no_fault_touches_it():
    from multismolvla_eval.config import EnvironmentArguments
    from multismolvla_eval.environments import load_sources
    from multismolvla_eval.policies.load import load_policy

    (found,) = load_sources(EnvironmentArguments(task_ids=[0], options={"streams": ["depth"]})).values()
    expert = load_policy("builtin:expert", found)
    rows = [episode_of(found, expert, c) for c in ("C0", "C2:depth=zero", "C0")]
    found.make(0).close()
    assert all(r.success for r in rows)
    assert len({r.actions for r in rows}) == 1
    assert expert.facts().privileged


def test_the_expert_is_told_the_state_that_the_episode_began_with(monkeypatch):
    """LeRobot's environments count on to the next state while they reset."""
    from types import SimpleNamespace

    from multismolvla_eval.policies import baselines

    told = []
    stand_in = SimpleNamespace(reset=lambda env, state=None: told.append(state))
    monkeypatch.setattr(baselines, "_libero_expert", lambda: stand_in)
    expert = baselines.ExpertPolicy(SimpleNamespace(config=SimpleNamespace(type="multismolvla_libero")))
    bare = SimpleNamespace(suite="libero_goal", init_state_id=8, _reset_stride=1)
    expert.watch(SimpleNamespace(unwrapped=bare))
    assert told == [7]


def test_assets_that_are_not_whole_are_refused_before_an_episode_can_crash(tmp_path):
    from multismolvla.system.libero_assets import FOLDERS
    from multismolvla_eval.config import EnvironmentArguments
    from multismolvla_eval.environments import load_sources

    for name in FOLDERS:
        (tmp_path / name).mkdir()
        (tmp_path / name / "something.xml").touch()
    arguments = EnvironmentArguments(
        task="libero_goal", task_ids=[0], options={"libero_assets": str(tmp_path)}
    )
    with pytest.raises(FileNotFoundError, match=r"\d+ of the files.*--fetch-assets"):
        load_sources(arguments)


def test_an_environment_without_expert_is_named():
    from toy_environment import ToySource

    from multismolvla_eval.config import EnvironmentArguments
    from multismolvla_eval.policies.load import load_policy

    with pytest.raises(ValueError, match="type None"):
        load_policy("builtin:expert", ToySource(EnvironmentArguments("toy_environment:ToySource", "toy")))


@pytest.mark.slow
def test_the_expert_of_libero_acts_in_the_very_episode_that_other_policies_get(libero_assets):
    """It searches in the episode's own simulator and leaves it as it was."""
    from multismolvla_eval.config import EnvironmentArguments
    from multismolvla_eval.environments import load_sources, state_hash
    from multismolvla_eval.policies.baselines import ExpertPolicy
    from multismolvla_eval.protocol.schedule import EpisodeSpec
    from multismolvla_eval.rollout.episode import run_episode

    class Watched(ExpertPolicy):
        def watch(self, env):
            before = state_hash(env)
            super().watch(env)
            self.untouched = state_hash(env) == before is not None

    options = {
        "streams": ["depth"],
        "observation_height": 32,
        "observation_width": 32,
        "libero_assets": str(libero_assets),
    }
    (found,) = load_sources(
        EnvironmentArguments(task="libero_object", task_ids=[0], options=options)
    ).values()
    expert = Watched(found)
    row = run_episode(EpisodeSpec("expert", "libero_object", 0, "C2:depth=zero", 1), found, expert, 0)
    found.make(0).close()
    assert expert.untouched
    assert row.success
    assert 80 < row.steps < 200
