"""Attacks on real policies: stronger than chance, through all that the policy does, and without a trace."""

from __future__ import annotations

import copy
import logging
from types import SimpleNamespace

import pytest
import torch
from lerobot.configs.policies import PreTrainedConfig
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from tiny_annotated import DOMAINS, RGB, VIEWS, annotated_dataset, write_networks
from tiny_policies import save_act, save_pi
from tiny_policy import SIDE, TINY, rgb_features

from lerobot_policy_multismolvla.processor_multismolvla import make_multismolvla_pre_post_processors
from multismolvla.corruption.adversarial import Attack
from multismolvla.modalities import default_view_map, padding_mask_key
from multismolvla.tokenizers.recipe import NUM_OFFICIAL_LABELS
from multismolvla_eval.policies.attacker import Attacker
from multismolvla_eval.policies.lerobot import possible_attacks

KINDS = ("vanilla", "ours", "act")
AGAINST = {"vanilla": ["policy", "feature"], "ours": ["policy", "feature"], "act": ["policy"]}
PAIRS = [(kind, against) for kind, names in AGAINST.items() for against in names]
KEYS = {key: key for key in RGB}
RADIUS = 8 / 255
HOW = Attack(RADIUS, "pgd", 2)


def generator(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def raw(size: int = 2, **changed) -> dict:
    """An observation as the environment's processor gives it."""
    g = torch.Generator().manual_seed(0)
    batch: dict = {}
    for streams in default_view_map().values():
        batch[streams["rgb"]] = torch.rand(size, 3, SIDE, SIDE, generator=g)
        batch[streams["depth"]] = 0.4 + torch.rand(size, 1, SIDE, SIDE, generator=g)
        batch[streams["seg"]] = torch.randint(0, 8, (size, 1, SIDE, SIDE), generator=g)
        batch[streams["thermal"]] = torch.rand(size, 1, SIDE, SIDE, generator=g)
    batch["observation.state"] = torch.randn(size, 8, generator=g)
    return batch | {"task": ["push"] * size} | changed


@pytest.fixture(scope="module")
def load(checkpoints):
    """name -> (policy, pre-processor), loaded once."""
    save_act(checkpoints / "act")
    loaded = {}

    def one(kind):
        if kind not in loaded:
            folder = str(checkpoints / kind)
            config = PreTrainedConfig.from_pretrained(folder)
            config.pretrained_path = folder
            policy = get_policy_class(config.type).from_pretrained(folder, config=config).eval()
            loaded[kind] = policy, make_pre_post_processors(policy_cfg=config, pretrained_path=folder)[0]
        loaded[kind][0].reset()
        return loaded[kind]

    return one


@pytest.mark.parametrize(("kind", "against"), PAIRS)
def test_an_attack_is_stronger_than_random_signs_and_stays_in_its_ball(load, kind, against):
    attacker, batch = Attacker(*load(kind)), raw()
    result = attacker.attack(batch, KEYS, against, HOW, generator())
    assert (result.found.reached > result.control).all()
    assert (result.found.reached > result.found.clean).all()
    assert (result.found.gradient > 0).all()
    for key in KEYS:
        assert 0 < (result.found.pictures[key] - batch[key]).abs().max() <= RADIUS + 2**-23
    again = attacker.attack(batch, KEYS, against, HOW, generator())
    assert all(torch.equal(result.found.pictures[k], again.found.pictures[k]) for k in KEYS)
    stronger = attacker.attack(batch, KEYS, against, Attack(64 / 255, "pgd", 2), generator())
    assert (stronger.found.reached > result.found.reached).all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_attacked_pictures_move_the_action_further_than_random_signs(load, kind):
    policy, prepare = load(kind)
    attacker = Attacker(policy, prepare)
    noise = {} if kind == "act" else {"noise": torch.randn(2, 4, 32, generator=generator())}
    result = attacker.attack(raw(), KEYS, "policy", Attack(RADIUS, "pgd", 5), generator(), **noise)

    def chunk(**pictures):
        policy.reset()
        return policy.predict_action_chunk(prepare(raw(**pictures)), **noise)[:, :2]

    clean = chunk()
    moved, control = ((chunk(**p) - clean).abs().mean() for p in (result.found.pictures, result.signs))
    assert moved > control


@pytest.mark.parametrize(("kind", "against"), PAIRS)
def test_radius_zero_gives_the_same_pictures_and_draws_nothing(load, kind, against):
    attacker, batch = Attacker(*load(kind)), raw()  # which draws weights, the first time
    state, own = torch.get_rng_state(), generator()
    result = attacker.attack(batch, KEYS, against, Attack(0.0), own)
    assert all(torch.equal(result.found.pictures[k], batch[k]) for k in KEYS)
    assert all(torch.equal(result.signs[k], batch[k]) for k in KEYS)
    assert torch.equal(result.found.reached, result.control)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(own.get_state(), generator().get_state())


@pytest.mark.parametrize(("kind", "against"), PAIRS)
def test_an_attack_leaves_the_policy_as_it_was(load, kind, against):
    """Weights, their gradients, modes, generators, and what it remembers: the next actions are the same."""
    policy, prepare = load(kind)
    batch = raw()
    kept = {k: v.clone() for k, v in batch.items() if isinstance(v, torch.Tensor)}
    policy.predict_action_chunk(prepare(raw()))  # so that there is something to remember
    before, modes = copy.deepcopy(policy.state_dict()), [m.training for m in policy.modules()]
    remembered = [getattr(policy, n, None) for n in ("_sensors", "_derived", "_last_look")]
    verdict = getattr(remembered[0], "verdict", None)
    state = torch.get_rng_state()
    Attacker(policy, prepare).attack(batch, KEYS, against, HOW, generator())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[k], v) for k, v in policy.state_dict().items())
    assert all(p.grad is None for p in policy.parameters())
    assert [m.training for m in policy.modules()] == modes
    now = [getattr(policy, n, None) for n in ("_sensors", "_derived", "_last_look")]
    assert all(a is b for a, b in zip(remembered, now, strict=True))
    assert getattr(now[0], "verdict", None) is verdict
    assert all(torch.equal(batch[k], v) for k, v in kept.items())


@pytest.mark.parametrize(("kind", "against"), [p for p in PAIRS if p[0] != "act"])
def test_a_camera_that_is_announced_as_absent_is_neither_attacked_nor_counted(load, kind, against):
    lost = {padding_mask_key(RGB[0]): torch.tensor([False, True])}
    attacker = Attacker(*load(kind))
    result = attacker.attack(raw(**lost), KEYS, against, HOW, generator())
    assert result.available[RGB[0]].tolist() == [False, True]
    for pictures in (result.found.pictures, result.signs):
        assert torch.equal(pictures[RGB[0]][0], raw()[RGB[0]][0])
        assert not torch.equal(pictures[RGB[0]][1], raw()[RGB[0]][1])
        assert not torch.equal(pictures[RGB[1]][0], raw()[RGB[1]][0])
    other = {**lost, RGB[0]: raw()[RGB[0]].flip(-1)}
    same = attacker.attack(raw(**other), KEYS, against, HOW, generator())
    assert torch.equal(same.found.reached[0], result.found.reached[0]), "whatever it shows"
    assert not torch.equal(same.found.reached[1], result.found.reached[1])


def test_a_picture_that_health_takes_for_absent_is_not_attacked_and_nothing_is_logged(load, caplog):
    policy, prepare = load("ours")
    policy.predict_action_chunk(prepare(raw()))
    black = {RGB[1]: raw()[RGB[1]] * torch.tensor([1.0, 0.0]).view(2, 1, 1, 1)}
    with caplog.at_level(logging.WARNING):
        result = Attacker(policy, prepare).attack(raw(**black), KEYS, "policy", HOW, generator())
    assert result.available[RGB[1]].tolist() == [True, False]
    assert torch.equal(result.found.pictures[RGB[1]][1], black[RGB[1]][1])
    assert not caplog.records


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pi0", "pi05"])
def test_a_policy_of_another_kind_is_attacked_through_its_own_training_loss(kind, checkpoints, monkeypatch):
    folder = save_pi(kind, checkpoints / kind, checkpoints / "vlm", monkeypatch)
    config = PreTrainedConfig.from_pretrained(folder)
    policy = get_policy_class(config.type).from_pretrained(folder, config=config).eval()
    attacker = Attacker(policy, make_pre_post_processors(policy_cfg=config, pretrained_path=folder)[0])
    assert possible_attacks(config) == ["policy", "random_sign"]
    result = attacker.attack(raw(1), KEYS, "policy", HOW, generator())
    assert (result.found.reached > result.control).all()
    assert (result.found.gradient > 0).all()


def test_one_camera_alone(load):
    result = Attacker(*load("ours")).attack(raw(), {RGB[1]: RGB[1]}, "policy", HOW, generator())
    assert set(result.found.pictures) == {RGB[1]}


def test_what_a_policy_can_be_attacked_by(load, checkpoints):
    for kind, against in AGAINST.items():
        assert possible_attacks(load(kind)[0].config) == [*against, "random_sign"]
    act = load("act")[0].config
    several = copy.copy(act)
    several.temporal_ensemble_coeff = 0.01
    assert possible_attacks(several) == ["random_sign"], "it remembers earlier looks"
    blind = SimpleNamespace(type="smolvla", image_features={"observation.images.image_depth": None})
    assert possible_attacks(blind) == []


# -- derived streams ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def derived(tmp_path_factory):
    """A policy that computes depth, segmentation and temperature of its RGB, and a frame."""
    from tiny_policies import save_smolvla, smolvla_options

    from lerobot_policy_multismolvla.configuration_multismolvla import MultiSmolVLAConfig
    from lerobot_policy_multismolvla.mini.tiny_vlm import build_tiny_vlm
    from lerobot_policy_multismolvla.modeling_multismolvla import MultiSmolVLAPolicy
    from multismolvla.fourm import MINI_DOMAINS, FourMConfig, FourMEncoder

    root = tmp_path_factory.mktemp("derived")
    vlm = build_tiny_vlm(root / "vlm", TINY)
    torch.manual_seed(0)
    FourMEncoder(FourMConfig.mini(32, 2, 2), list(MINI_DOMAINS.values())).save_pretrained(root / "fourm")
    base = save_smolvla(root / "vanilla", vlm)
    sources = write_networks(root / "networks")
    data = LeRobotDataset("tests/all", root=annotated_dataset(root / "data", root / "fourm", sources))
    options = {**smolvla_options(vlm), "input_features": rgb_features()}
    config = MultiSmolVLAConfig(
        **options, encoder=str(root / "fourm"), domains=DOMAINS, views=VIEWS, image_size=SIDE, fusion_grid=8,
        connector_grid=8, connector_hidden=64, dtype="float32", base_checkpoint=base,
        estimator_sources=sources, refresh={"depth": 3}, num_labels=NUM_OFFICIAL_LABELS,
    )  # fmt: skip
    config.set_dataset_feature_metadata(data.meta.features)
    policy = MultiSmolVLAPolicy(config).eval()
    item = data[0]
    batch = {k: item[k][None] for k in (*RGB, "observation.state")} | {"task": ["push"]}
    return policy, make_multismolvla_pre_post_processors(config, data.meta.stats)[0], batch


def test_derived_streams_are_computed_of_the_attacked_rgb_and_remembered_of_the_true_look(derived):
    policy, prepare, batch = derived
    policy.reset()
    policy.predict_action_chunk(prepare(dict(batch)))
    memory, clean = policy._derived.memory, policy.last_look().inputs.fingerprint()
    seen = []
    estimator = policy._derived._loaded["thermal"]
    estimate = estimator.estimate
    estimator.estimate = lambda rgb: seen.append(rgb.detach().clone()) or estimate(rgb)
    try:
        result = Attacker(policy, prepare).attack(batch, KEYS, "policy", Attack(0.2, "pgd", 2), generator())
    finally:
        estimator.estimate = estimate
    assert policy._derived.memory is memory, "the age of an estimate is that of the looks that counted"
    assert len({tuple(x.flatten()[:99].tolist()) for x in seen}) >= 4, "anew for each picture that was tried"
    policy.reset()
    policy.predict_action_chunk(prepare({**batch, **result.found.pictures}))
    attacked = policy.last_look().inputs.fingerprint()
    for modality in ("rgb", "thermal", "depth"):
        assert attacked[DOMAINS[modality]] != clean[DOMAINS[modality]]
