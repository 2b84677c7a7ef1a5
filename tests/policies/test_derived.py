"""Streams that training data had estimated from RGB are there when the policy acts, with the same ids."""

from __future__ import annotations

import json
import logging
import re
import shutil

import pytest
import torch
from lerobot.configs.policies import PreTrainedConfig
from lerobot.envs.utils import preprocess_observation
from lerobot.policies.rtc.configuration_rtc import RTCConfig
from tiny_annotated import (
    DOMAINS,
    MODALITIES,
    RGB,
    VIEWS,
    alike,
    raw,
    seen,
    stored,
)
from tiny_policy import SIDE, flow_inputs, rgb_features

from lerobot_env_multismolvla import MultiSmolVLALiberoConfig
from lerobot_env_multismolvla.processor_multismolvla_libero import add_batch_axis
from lerobot_policy_multismolvla import derived
from lerobot_policy_multismolvla.export import export_for_finetuning
from lerobot_policy_multismolvla.modeling_multismolvla import MultiSmolVLAPolicy
from lerobot_policy_multismolvla.training_faults import deployed_streams, drop_sensors
from multismolvla.health import MEMORY_KEY
from multismolvla.modalities import MODALITIES as ALL_MODALITIES
from multismolvla.modalities import padding_mask_key, token_key
from multismolvla.tokenizers.recipe import NUM_OFFICIAL_LABELS


def test_the_ids_at_the_encoder_are_those_of_training_in_any_company(policy_of, annotated):
    policy, pre = policy_of()
    for rows in ([0, 1, 2, 3, 4, 5], [4, 1], [3]):
        found = seen(policy, pre, raw(annotated, rows))
        assert set(found) == set(MODALITIES)
        for modality, ids in found.items():
            wanted = stored(annotated, rows, modality)
            assert torch.equal(ids, wanted) if len(rows) == 1 else alike(ids, wanted)
            assert ids.unique().numel() > 5  # a constant would agree, too


def test_one_changed_patch_of_rgb_reaches_every_derived_stream_of_its_view(policy_of, annotated):
    policy, pre = policy_of()
    before = seen(policy, pre, raw(annotated, [0]))
    changed = annotated[0][RGB[0]][None].clone()
    assert changed.is_floating_point()
    corner = changed[..., : SIDE // 2, : SIDE // 2]
    corner.copy_(1 - corner)
    after = seen(policy, pre, raw(annotated, [0], **{RGB[0]: changed}))
    for modality in MODALITIES:
        assert (after[modality][:, 0] >= 0).any()  # else RGB was refused, and took the rest along
        assert not torch.equal(after[modality][:, 0], before[modality][:, 0])
        assert torch.equal(after[modality][:, 1], before[modality][:, 1])


def test_absent_rgb_takes_the_stream_along_row_by_row(policy_of, annotated):
    policy, pre = policy_of()
    full = seen(policy, pre, raw(annotated, [0, 1, 2]))
    black = annotated[1][RGB[0]][None].repeat(3, 1, 1, 1)
    black[1] = 0  # unannounced: health takes it for absent
    other = raw(annotated, [0, 1, 2])[RGB[0]]
    other[1] = black[1]
    found = seen(policy, pre, raw(annotated, [0, 1, 2], **{RGB[0]: other}))
    for modality in MODALITIES:
        assert (found[modality][1, 0] == -1).all()
        assert alike(found[modality][[0, 2], 0], full[modality][[0, 2], 0])
        assert torch.equal(found[modality][:, 1], full[modality][:, 1])
    without = raw(annotated, [0])
    del without[RGB[1]]
    assert (seen(policy, pre, without)["depth"][:, 1] == -1).all()


def test_a_stream_that_somebody_delivers_is_theirs_even_when_they_announce_its_loss(policy_of, annotated):
    policy, pre = policy_of()
    key = VIEWS["image2"]["thermal"]
    masked = {padding_mask_key(key): torch.tensor([False])}
    picture = {key: torch.zeros(1, 3, SIDE, SIDE)}
    lost = seen(policy, pre, raw(annotated, [0]) | masked | picture)
    assert (lost["thermal"][:, 1] == -1).all()


def test_an_announced_loss_is_a_loss_also_where_no_sensor_would_deliver_the_stream(policy_of, annotated):
    policy, pre = policy_of(refresh={"thermal": 2}, refresh_between="reuse")
    whole = seen(policy, pre, raw(annotated, [0, 1]))
    lost = {padding_mask_key(VIEWS["image"]["thermal"]): torch.tensor([True, False])}
    first, second = looks(policy, pre, annotated, [[0, 1], [0, 1]], look0=lost, look1=lost)
    for found in (first, second):  # neither estimated nor remembered
        assert alike(found["thermal"][0], whole["thermal"][0])
        assert (found["thermal"][1, 0] == -1).all()
        assert alike(found["thermal"][1, 1], whole["thermal"][1, 1])
        assert torch.equal(found["depth"], whole["depth"])


def test_what_a_sensor_delivers_is_not_estimated(policy_of, annotated, caplog, monkeypatch):
    policy, pre = policy_of()
    depth = torch.full((1, 1, SIDE, SIDE), 0.5)
    keys = [VIEWS[view]["depth"] for view in VIEWS]
    with caplog.at_level(logging.WARNING):
        found = seen(policy, pre, raw(annotated, [0]) | dict.fromkeys(keys, depth))
        seen(policy, pre, raw(annotated, [0]) | dict.fromkeys(keys, depth))
    assert found["depth"].unique().numel() == 1
    assert caplog.text.count("image.depth is delivered, so it is not estimated") == 1
    # a camera that is gone for good leaves nothing to be read in the control loop
    monkeypatch.setattr(derived, "restore_estimator", lambda *_, **__: pytest.fail("too late"))
    policy.predict_action_chunk(pre(raw(annotated, [0])))
    ids = policy.last_look().inputs.values[DOMAINS["depth"]].reshape(1, len(VIEWS), -1)
    assert torch.equal(ids, stored(annotated, [0], "depth"))


def test_the_networks_are_read_and_run_before_the_first_look_and_not_in_training(
    policy_of, annotated, monkeypatch, caplog
):
    policy, pre = policy_of()
    policy.train().reset()
    assert policy._derived._loaded == {}
    read, ran = [], []
    restore = derived.restore_estimator

    def watched(modality, *args, **options):
        read.append(modality)
        estimator = restore(modality, *args, **options)
        estimate = estimator.estimate
        monkeypatch.setattr(estimator, "estimate", lambda rgb: ran.append(modality) or estimate(rgb))
        return estimator

    monkeypatch.setattr(derived, "restore_estimator", watched)
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            policy.eval().reset()
    assert read == ran == list(MODALITIES)
    for modality in MODALITIES:
        assert len(re.findall(rf"Reading the {modality} estimator: .*\(\d+ [kM]B\)", caplog.text)) == 1
    assert set(seen(policy, pre, raw(annotated, [0]))) == set(MODALITIES)
    assert read == list(MODALITIES)


def test_vanilla_smolvla_reads_no_estimator(make_policy, policy_of, sources):
    learned, _ = policy_of()
    recipes = {"estimators": learned.config.estimators, "estimator_sources": sources}
    said = {"provenance": learned.config.provenance, "views": VIEWS, "input_features": rgb_features()}
    policy = make_policy(vision_tower="siglip", stage="robust", **recipes, **said)
    policy.eval().reset()
    assert policy._derived._loaded == {}


@pytest.mark.parametrize("stage", ["connector", "robust"])
def test_the_loss_of_a_held_out_split_is_of_what_the_policy_will_see(stage, policy_of, annotated):
    policy, pre = policy_of(stage=stage)
    batch = pre(raw(annotated, [0])) | {"action": torch.zeros(1, 4, 7)}
    policy.eval().forward(batch, **flow_inputs(1))
    assert set(policy.last_look().inputs.values) == set(DOMAINS.values())


def test_nothing_is_estimated_between_looks(policy_of, annotated, monkeypatch):
    policy, pre = policy_of()
    assert policy.config.n_action_steps >= 2
    policy.reset()
    policy.select_action(pre(raw(annotated, [0])))
    looks = []
    for estimator in policy._derived._loaded.values():
        monkeypatch.setattr(estimator, "estimate", lambda rgb: looks.append(len(rgb)))
    for _ in range(policy.config.n_action_steps - 1):
        policy.select_action(pre(raw(annotated, [1])))
    assert looks == []


def test_under_rtc_each_plan_has_the_estimates_of_its_own_picture(policy_of, annotated):
    policy, pre = policy_of(rtc_config=RTCConfig(enabled=True, execution_horizon=2))
    policy.reset()
    left = None
    for frame in (0, 1, 2):
        observation = pre(raw(annotated, [frame]))
        chunk = policy.predict_action_chunk(observation, inference_delay=1, prev_chunk_left_over=left)
        left = chunk[0, 1:]
        for modality in MODALITIES:
            ids = policy.last_look().inputs.values[DOMAINS[modality]].reshape(1, len(VIEWS), -1)
            assert torch.equal(ids, stored(annotated, [frame], modality))


def looks(policy, pre, annotated, frames, **changed) -> list[dict[str, torch.Tensor]]:
    """What enters the encoder at looks of one episode; ``changed``: frame -> other observations."""
    policy.reset()
    reset, policy.reset = policy.reset, lambda: None  # `seen` begins an episode
    try:
        rows = [[f] if isinstance(f, int) else f for f in frames]
        return [
            seen(policy, pre, raw(annotated, r, **changed.get(f"look{n}", {}))) for n, r in enumerate(rows)
        ]
    finally:
        policy.reset = reset


@pytest.mark.parametrize("between", ["absent", "reuse"])
def test_a_stream_is_estimated_at_every_kth_look_only(between, policy_of, annotated):
    policy, pre = policy_of(refresh={"thermal": 3}, refresh_between=between)
    frames = [0, 1, 2, 3, 4]
    found = looks(policy, pre, annotated, frames)
    for n, frame in enumerate(frames):
        assert torch.equal(found[n]["depth"], stored(annotated, [frame], "depth"))
        if n % 3 == 0:
            assert torch.equal(found[n]["thermal"], stored(annotated, [frame], "thermal"))
        elif between == "absent":
            assert "thermal" not in found[n]
        else:
            assert torch.equal(found[n]["thermal"], stored(annotated, [n // 3 * 3], "thermal"))
    again = looks(policy, pre, annotated, [1])  # another episode begins with a look of its own
    assert torch.equal(again[0]["thermal"], stored(annotated, [1], "thermal"))


def test_rows_are_remembered_apart(policy_of, annotated):
    """Row 1 has no RGB at the first look, so its turn comes at the second."""
    policy, pre = policy_of(refresh={"thermal": 2}, refresh_between="reuse")
    black = raw(annotated, [0, 1])[RGB[0]].clone()
    black[1] = 0
    found = looks(policy, pre, annotated, [[0, 1], [2, 3], [4, 5]], look0={RGB[0]: black})
    first = [look["thermal"][:, 0] for look in found]
    wanted = [stored(annotated, rows, "thermal")[:, 0] for rows in ([0, 1], [2, 3], [4, 5])]
    assert alike(first[0][0], wanted[0][0])
    assert (first[0][1] == -1).all()
    assert torch.equal(first[1][0], first[0][0])
    assert alike(first[1][1], wanted[1][1])
    assert alike(first[2][0], wanted[2][0])
    assert torch.equal(first[2][1], first[1][1])


@pytest.mark.parametrize("meanwhile", ["no RGB", "delivered"])
def test_what_is_reused_outlasts_a_look_at_which_nothing_could_be_estimated(
    meanwhile, policy_of, annotated, monkeypatch
):
    policy, pre = policy_of(refresh={"thermal": 4}, refresh_between="reuse")
    policy.reset()
    monkeypatch.setattr(policy, "reset", lambda: None)  # `seen` begins an episode
    first = seen(policy, pre, raw(annotated, [0]))["thermal"]
    disturbed = raw(annotated, [1])
    if meanwhile == "no RGB":
        del disturbed[RGB[0]]
    else:
        disturbed[VIEWS["image"]["thermal"]] = torch.full((1, 1, SIDE, SIDE), 0.5)
    second = seen(policy, pre, disturbed)["thermal"]
    assert (second[:, 0] == -1).all() or second[:, 0].unique().numel() == 1
    assert torch.equal(second[:, 1], first[:, 1])
    assert torch.equal(seen(policy, pre, raw(annotated, [2]))["thermal"], first)
    kept = [key for key in policy.last_look().derived if key.endswith("_last")]
    # not what is always estimated
    assert kept == [derived.last_key(VIEWS[view]["thermal"]) for view in VIEWS]


def test_a_caller_can_remember_in_the_policys_stead(policy_of, annotated):
    """A server's policy sees looks of several episodes in turn."""
    policy, pre = policy_of(refresh={"thermal": 2}, refresh_between="reuse")
    alone = [looks(policy, pre, annotated, frames) for frames in ([0, 1, 2], [5, 4, 3])]
    memory: list[dict[str, torch.Tensor]] = [policy.config.first_memory() for _ in range(2)]
    policy.reset()
    for n, frames in enumerate([(0, 5), (1, 4), (2, 3)]):
        for episode, frame in enumerate(frames):
            policy.predict_action_chunk(pre(raw(annotated, [frame])) | memory[episode])
            look = policy.last_look()
            memory[episode] |= {**look.derived, MEMORY_KEY: look.health.memory}
            ids = look.inputs.values[DOMAINS["thermal"]].reshape(1, len(VIEWS), -1)
            assert torch.equal(ids, alone[episode][n]["thermal"])


def test_training_misses_a_stream_as_often_as_the_robot_will(policy_of):
    policy, _ = policy_of(refresh={"thermal": 4}, dropout_mode="none")
    everything = torch.ones(4000, len(VIEWS), len(ALL_MODALITIES), dtype=torch.bool)
    left = drop_sensors(policy.config, everything, 0, 0)
    thermal = left[..., ALL_MODALITIES.index("thermal")]
    assert thermal.float().mean().item() == pytest.approx(1 / 4, abs=0.03)
    assert (thermal[:, 0] == thermal[:, 1]).all()  # one look, all cameras
    others = [m != "thermal" for m in ALL_MODALITIES]
    assert left[..., others].all()
    policy.config.refresh_between = "reuse"
    assert drop_sensors(policy.config, everything, 0, 0).all()


def test_training_misses_streams_together_as_the_robot_will(policy_of):
    policy, _ = policy_of(refresh={"thermal": 4, "seg": 2}, dropout_mode="none")
    everything = torch.ones(8000, len(VIEWS), len(ALL_MODALITIES), dtype=torch.bool)
    left = drop_sensors(policy.config, everything, 0, 0)
    thermal, seg = (left[:, 0, ALL_MODALITIES.index(m)] for m in ("thermal", "seg"))
    looks = torch.arange(4)
    for t in (True, False):
        for s in (True, False):
            acting = ((looks % 4 == 0) == t) & ((looks % 2 == 0) == s)
            trained = (thermal == t) & (seg == s)
            share = acting.float().mean().item()
            assert trained.float().mean().item() == (pytest.approx(share, abs=0.02) if share else 0)


def test_a_refresh_that_training_did_not_show_is_told(policy_of, tmp_path, caplog):
    policy, _ = policy_of(refresh={"thermal": 4})
    policy.save_pretrained(tmp_path)
    for changed, told in (({}, 0), ({"refresh": {"thermal": 2}}, 1), ({"refresh_between": "reuse"}, 1)):
        cfg = PreTrainedConfig.from_pretrained(tmp_path)
        for option, value in changed.items():
            setattr(cfg, option, value)
        loaded = MultiSmolVLAPolicy.from_pretrained(tmp_path, config=cfg)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            for _ in range(2):
                loaded.eval().reset()
        assert caplog.text.count("trained with refresh={'thermal': 4} (between: absent)") == told


def test_what_is_estimated_of_a_deployed_rgb_is_deployed(policy_of):
    policy, _ = policy_of(deployment=["image.rgb"])
    senses = [m in ("rgb", *MODALITIES) for m in ALL_MODALITIES]
    assert deployed_streams(policy.config).tolist() == [senses, [False] * len(ALL_MODALITIES)]


def test_what_training_cannot_imitate_is_said_once_when_it_begins(policy_of, batch, caplog):
    for between, said in (("reuse", 1), ("absent", 0)):
        policy, _ = policy_of(refresh={"thermal": 4}, refresh_between=between)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            for _ in range(2):
                policy.train().forward(dict(batch), **flow_inputs())
        assert caplog.text.count("estimates of earlier pictures (refresh={'thermal': 4})") == said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"refresh": {"thermal": 0}}, "thermal every 0 looks"),
        ({"refresh": {"rgb": 2}}, "refresh keys='rgb' is unknown"),
        (
            {"refresh": {"thermal": 2}, "provenance": {}},
            "thermal is no derived modality .* read at every look",
        ),
        ({"refresh_between": "hold"}, "refresh_between='hold' is unknown"),
        ({"refresh": {"thermal": 2}, "estimators": {}}, "no recipe says what estimates thermal"),
        (
            {"views": VIEWS | {"image": {m: key for m, key in VIEWS["image"].items() if m != "rgb"}}},
            "image.depth is derived from the RGB of view 'image'",
        ),
    ],
)
def test_a_refresh_that_cannot_be_is_refused(options, message, policy_of):
    with pytest.raises(ValueError, match=message):
        policy_of(**options)


@pytest.mark.sim
def test_in_the_simulator_a_fault_of_rgb_reaches_what_is_derived_from_it(policy_of):
    """The suite renders RGB alone; nothing clean may leak past the fault."""
    policy, pre = policy_of()

    def first_look(condition: str | None) -> dict[str, torch.Tensor]:
        config = MultiSmolVLALiberoConfig(streams=["rgb"], condition=condition)
        env = config.env_maker("multismolvla_mini", 0)()
        try:
            observation, _ = env.reset(seed=0, options={"init_state_id": 0})
        finally:
            env.close()
        ready = preprocess_observation(add_batch_axis(observation))
        batch = config.get_env_processors()[0].process_observation(ready)
        return seen(policy, pre, batch | {"task": ["put the cube in the basket"]})

    clean, again = first_look(None), first_look(None)
    noisy, lost = first_look("C3:rgb=gaussian_noise@5"), first_look("C1:camera=image")
    for modality in MODALITIES:
        assert (clean[modality] >= 0).all()
        assert torch.equal(again[modality], clean[modality])
        for view in range(len(VIEWS)):
            assert not torch.equal(noisy[modality][:, view], clean[modality][:, view])
        assert (lost[modality][:, 0] == -1).all()
        assert torch.equal(lost[modality][:, 1], clean[modality][:, 1])


def test_missing_files_refuse_the_start_unless_the_stream_may_be_absent(
    policy_of, annotated, sources, tmp_path, caplog
):
    gone = sources | {"thermal": str(tmp_path / "nowhere")}
    policy, _ = policy_of(estimator_sources=gone)
    with pytest.raises(
        FileNotFoundError, match=r"a folder called 'thermal'.*(?s:.*)missing_estimator=absent"
    ):
        policy.eval().reset()
    published = policy.config.estimators["thermal"] | {"model": "xjh19972/ThermalGen-XL-2"}
    for places in (gone, {m: folder for m, folder in sources.items() if m != "thermal"}):
        recipes = policy.config.estimators | {"thermal": published}
        other, _ = policy_of(estimators=recipes, estimator_sources=places)
        with pytest.raises(FileNotFoundError, match=r"ThermalGen-XL-2 \(4\.41 GB; licence: code MIT"):
            other.eval().reset()
    policy, pre = policy_of(estimator_sources=gone, missing_estimator="absent")
    with caplog.at_level(logging.WARNING):
        found = seen(policy, pre, raw(annotated, [0]))
        seen(policy, pre, raw(annotated, [1]))
    assert "thermal" not in found
    assert torch.equal(found["depth"], stored(annotated, [0], "depth"))
    assert caplog.text.count("thermal is not estimated") == 1


def test_the_recipes_are_stored_with_the_policy_and_a_dataset_of_others_is_refused(
    policy_of, annotated, tmp_path
):
    policy, _ = policy_of()
    recipe = policy.config.estimators["thermal"]
    assert recipe["settings"]["size"] == 32
    policy.save_pretrained(tmp_path)
    again = PreTrainedConfig.from_pretrained(tmp_path)
    assert again.estimators == policy.config.estimators
    again.set_dataset_feature_metadata(annotated.meta.features)  # the same: fine
    features = json.loads(json.dumps(annotated.meta.features))
    annotation = features[token_key("image", "thermal")]["info"]["estimator"]
    files = annotation.pop("files")  # as recipes of older data; what is not known cannot be compared
    again.set_dataset_feature_metadata(features)
    annotation["files"] = files | {"config.json": "another"}
    with pytest.raises(ValueError, match=r"image_thermal.*thermal was estimated with files=.*'another'"):
        again.set_dataset_feature_metadata(features)
    annotation["files"] = files
    annotation["settings"]["steps"] = 7
    with pytest.raises(ValueError, match=r"image_thermal.*thermal was estimated with settings=.*'steps': 7"):
        again.set_dataset_feature_metadata(features)


def test_another_recipe_is_learned_where_the_checkpoints_is_forgotten(policy_of, annotated, tmp_path):
    """With the remedy that the error names, as LeRobot reads it: into what the checkpoint says."""
    policy, _ = policy_of(refresh={"thermal": 4})
    policy.save_pretrained(tmp_path)
    features = json.loads(json.dumps(annotated.meta.features))
    for view in VIEWS:
        features[token_key(view, "thermal")]["info"]["estimator"]["settings"]["steps"] = 7
    cfg = PreTrainedConfig.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="thermal was estimated with settings") as caught:
        cfg.set_dataset_feature_metadata(features)
    remedy = re.search(r"--policy(\.estimators='.*')", str(caught.value)).group(1)
    words = ["--" + remedy[1:].replace("'", ""), '--refresh={"thermal": 1}']
    again = PreTrainedConfig.from_pretrained(tmp_path, cli_overrides=words)
    again.set_dataset_feature_metadata(features)
    assert again.estimators["thermal"]["settings"]["steps"] == 7
    assert again.estimators["depth"] == policy.config.estimators["depth"]
    assert not derived.remembers(again)


def test_a_start_for_other_views_forgets_what_made_the_old_ones(policy_of, annotated, tmp_path):
    policy, _ = policy_of(refresh={"thermal": 4})
    policy.save_pretrained(tmp_path / "old")
    views = {"image": {"rgb": RGB[0]}}
    export_for_finetuning(tmp_path / "old", tmp_path / "new", views=views, dataset=annotated.root)
    made = PreTrainedConfig.from_pretrained(tmp_path / "new")
    assert made.estimators == made.estimator_sources == made.refresh == {}
    export_for_finetuning(tmp_path / "old", tmp_path / "same", views=VIEWS, dataset=annotated.root)
    assert PreTrainedConfig.from_pretrained(tmp_path / "same").estimators == policy.config.estimators


def test_derived_streams_without_a_recipe_are_told(make_config, annotated, caplog):
    features = json.loads(json.dumps(annotated.meta.features))
    for feature in features.values():
        (feature.get("info") or {}).pop("estimator", None)
    cfg = make_config(
        views=VIEWS, domains=DOMAINS, input_features=rgb_features(), num_labels=NUM_OFFICIAL_LABELS
    )
    with caplog.at_level(logging.WARNING):
        cfg.set_dataset_feature_metadata(features)
    streams = ", ".join(f"{view}.{modality}" for view in VIEWS for modality in MODALITIES)
    assert f"what estimated {streams}." in caplog.text
    assert cfg.estimators == {}


def test_other_weights_than_in_training_are_refused(policy_of, annotated, sources, tmp_path):
    folder = tmp_path / "depth"
    shutil.copytree(sources["depth"], folder)
    policy, pre = policy_of(estimator_sources=sources | {"depth": str(folder)})
    recipe = dict(policy.config.estimators["depth"], fingerprint="0" * 64)
    policy.config.estimators = policy.config.estimators | {"depth": recipe}
    with pytest.raises(ValueError, match="depth estimator at .* has the fingerprint"):
        seen(policy, pre, raw(annotated, [0]))


def test_unknown_names_are_errors(make_config):
    with pytest.raises(ValueError, match=r"estimators keys='rgb'"):
        make_config(estimators={"rgb": {}})
    with pytest.raises(ValueError, match=r"missing_estimator='maybe'"):
        make_config(missing_estimator="maybe")
