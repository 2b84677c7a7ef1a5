"""What of the objectives is saved, loaded, adapted with PEFT, and left out of exports."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from lerobot.configs.policies import PreTrainedConfig
from lora import OVERRIDES, saved
from safetensors.torch import load_file, save_file
from tiny_policy import chunk, flow_inputs
from training_batch import TASKS, training_batch

from lerobot_policy_multismolvla.export import export_policy
from lerobot_policy_multismolvla.flow import FlowDraw
from lerobot_policy_multismolvla.modeling_multismolvla import MultiSmolVLAPolicy
from lerobot_policy_multismolvla.objectives.modules import adopt_labels, adopt_tasks
from lerobot_policy_multismolvla.objectives.step import Sensors, TrainingStep
from multismolvla.objectives.interface import CompleteLook
from multismolvla.objectives.options import ObjectivesOptions

BOTH = {"robult": {"weight": 1.0}, "rlbind": {"weight": 1.0, "attack_steps": 1}}
PREFIX = "model.objectives."


def trained(policy, batch, steps: int = 2):
    optimizer = torch.optim.AdamW(policy.get_optim_params(), 1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        policy.forward(dict(batch), **flow_inputs(len(batch["index"])))[0].backward()
        optimizer.step()
        policy.update()
    return policy


def terms(policy, batch):
    """Loss and logs of the next step, without the times."""
    loss, logs = policy.train().forward(dict(batch), **flow_inputs(len(batch["index"])))
    return loss.item(), {k: v for k, v in logs.items() if not k.endswith("_s")}


def test_a_saved_policy_goes_on_as_if_it_had_not_been(train, batch, tmp_path):
    policy = trained(train(**BOTH), batch)
    policy.save_pretrained(tmp_path / "two")
    again = MultiSmolVLAPolicy.from_pretrained(tmp_path / "two")
    own = {k: v for k, v in policy.state_dict().items() if k.startswith(PREFIX)}
    assert {k for k in own if "statistics" in k or "reference" in k or "anchors" in k}
    assert all(torch.equal(again.state_dict()[k], v) for k, v in own.items())
    assert terms(again, training_batch(seed=1)) == terms(policy, training_batch(seed=1))


def test_the_connector_that_is_kept_is_that_of_the_beginning(train, stage_one, batch, tmp_path):
    policy = trained(train(**BOTH), batch)
    policy.save_pretrained(tmp_path / "two")
    again = MultiSmolVLAPolicy.from_pretrained(tmp_path / "two")
    start = MultiSmolVLAPolicy.from_pretrained(stage_one).model.bridge.state_dict()
    for one in (policy, again):
        kept = one.model.objectives["rlbind"].reference.state_dict()
        assert all(torch.equal(kept[k], v) for k, v in start.items())
        assert any(not torch.equal(v, start[k]) for k, v in one.model.bridge.state_dict().items())


def test_a_missing_weight_of_an_objective_is_an_error(train, tmp_path):
    train(**BOTH).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    lost = f"{PREFIX}robult.statistics.rgb.mean"
    save_file({k: v for k, v in load_file(file).items() if k != lost}, file)
    with pytest.raises(ValueError, match=f"does not fit this policy: missing '{lost}'"):
        MultiSmolVLAPolicy.from_pretrained(tmp_path)


def test_an_objective_joins_and_leaves_as_a_whole(train, batch, tmp_path):
    policy = trained(train(robult=BOTH["robult"]), batch)
    policy.save_pretrained(tmp_path / "two")
    switched = ["--objectives.robult.weight=0", "--objectives.rlbind.weight=1"]
    config = PreTrainedConfig.from_pretrained(tmp_path / "two", cli_overrides=switched)
    other = MultiSmolVLAPolicy.from_pretrained(tmp_path / "two", config=config)
    assert list(other.model.objectives) == ["rlbind"]
    assert torch.equal(chunk(other, batch), chunk(policy, batch))
    kept = other.model.objectives["rlbind"].reference.state_dict()
    assert all(torch.equal(kept[k], v) for k, v in policy.model.bridge.state_dict().items())


def test_an_export_knows_nothing_of_objectives(train, batch, tmp_path):
    policy = trained(train(**BOTH, label_fraction=0.5, label_episodes=[0, 1], consistency_weight=0.5), batch)
    policy.save_pretrained(tmp_path / "two")
    export_policy(tmp_path / "two", tmp_path / "out")
    assert not any(k.startswith(PREFIX) for k in load_file(tmp_path / "out" / "model.safetensors"))
    assert "objectives" not in json.loads((tmp_path / "out" / "config.json").read_text())
    again = MultiSmolVLAPolicy.from_pretrained(tmp_path / "out")
    assert again.config.active_objectives == {}
    assert torch.equal(chunk(again, batch), chunk(policy, batch))


# -- LoRA ----------------------------------------------------------------------------------------------------


def wrapped(train, **objectives):
    policy = train(**objectives)
    torch.manual_seed(3)
    return policy.wrap_with_peft(peft_cli_overrides=dict(OVERRIDES)).train()


def resumed(path, stage_one, changes=()):
    """As LeRobot's factory does it: the base with the adapters' configuration, then the adapters."""
    from peft import PeftModel

    config = PreTrainedConfig.from_pretrained(path, cli_overrides=list(changes))
    config.pretrained_path = path
    base = MultiSmolVLAPolicy.from_pretrained(stage_one, config=config)
    return PeftModel.from_pretrained(base, str(path), is_trainable=True)


def test_heads_are_trained_in_full_beside_adapters_and_go_on_as_if_never_saved(
    train, stage_one, batch, tmp_path
):
    policy = wrapped(train, **BOTH)
    names = [n for n, p in policy.named_parameters() if p.requires_grad]
    heads = [n for n in names if ".objectives." in n]
    assert any(".robult.modules_to_save.default.projection" in n for n in heads)
    assert any(".rlbind.modules_to_save.default.projection" in n for n in heads)
    assert all(".modules_to_save." in n and ".reference." not in n for n in heads)
    trained(policy, batch)
    folder = saved(policy, tmp_path / "two")
    keys = load_file(folder / "adapter_model.safetensors").keys()
    assert any("robult.statistics.rgb.mean" in k for k in keys)
    assert any("rlbind.reference." in k for k in keys)
    again = resumed(folder, stage_one)
    assert terms(again, training_batch(seed=1)) == terms(policy, training_batch(seed=1))


def complete(policy, batch) -> CompleteLook:
    """The undisturbed look of a step, which RLBind keeps tokens to."""
    inner = policy.get_base_model()
    available = inner.availability(batch)
    visual = inner.visual_tokens(batch, available)
    return TrainingStep(inner, batch, Sensors(available, available), visual, FlowDraw()).complete()


def test_adapters_on_the_tower_learn_and_the_target_stays_that_of_the_tower_without_them(
    train, stage_one, batch, tmp_path
):
    policy = wrapped(train, rlbind=BOTH["rlbind"], encoder_lora_blocks=1)
    before = complete(policy, batch)
    trained(policy, batch)
    adapters = {n: p for n, p in policy.named_parameters() if ".tower." in n and "lora_B" in n}
    assert adapters
    assert all(p.abs().sum() > 0 and p.requires_grad for p in adapters.values())
    after = complete(policy.train(), batch)
    assert not torch.equal(after.tokens, before.tokens)
    assert all(torch.equal(after.inputs.tokens[m], before.inputs.tokens[m]) for m in before.inputs.tokens)
    assert not any(tokens.requires_grad for tokens in after.inputs.tokens.values())
    again = resumed(saved(policy, tmp_path / "two"), stage_one)
    assert terms(again, training_batch(seed=1)) == terms(policy, training_batch(seed=1))


@pytest.mark.parametrize("name", list(BOTH))
def test_one_that_adapters_do_not_know_joins_once_they_are_merged(name, train, stage_one, batch, tmp_path):
    policy = trained(wrapped(train), batch)
    folder = saved(policy, tmp_path / "two")
    switched = [f"--objectives.{name}.weight=1"]
    later = resumed(folder, stage_one, [*switched, f"--objectives.tasks={json.dumps(TASKS)}"]).train()
    with pytest.raises(
        ValueError, match=rf"{name}.weight=1.0 was switched on over adapters.*multismolvla-ex"
    ):
        later.forward(dict(batch), **flow_inputs(4))
    export_policy(folder, tmp_path / "out")
    config = PreTrainedConfig.from_pretrained(tmp_path / "out", cli_overrides=switched)
    config.objectives.tasks, config.pretrained_path = TASKS, tmp_path / "out"
    merged = MultiSmolVLAPolicy.from_pretrained(tmp_path / "out", config=config).train()
    assert terms(merged, batch)[1][name] > 0
    if name == "rlbind":
        kept = merged.model.objectives[name].reference.state_dict()
        bridge = policy.model.model.bridge.modules_to_save["default"].state_dict()
        assert all(torch.equal(kept[k], v) for k, v in bridge.items())


def test_merged_and_exported_adapters_know_nothing_of_objectives(train, batch, tmp_path):
    policy = trained(wrapped(train, **BOTH), batch)
    folder = saved(policy, tmp_path / "two")
    export_policy(folder, tmp_path / "out")
    again = MultiSmolVLAPolicy.from_pretrained(tmp_path / "out")
    assert list(again.model.objectives) == []
    assert torch.allclose(chunk(again, batch), chunk(policy.eval(), batch), atol=1e-5)


# -- the tasks of the data -----------------------------------------------------------------------------------


def table(tasks, numbers=None):
    return pd.DataFrame({"task_index": numbers or range(len(tasks))}, index=pd.Index(tasks, name="task"))


def test_the_tasks_are_adopted_in_the_order_of_their_numbers(make_config):
    config = make_config()
    adopt_tasks(config, table(TASKS))
    assert config.objectives.tasks == []  # nobody asks
    config.objectives.robult.weight = 1.0
    adopt_tasks(config, table(TASKS, [2, 0, 1]))
    assert config.objectives.tasks == [TASKS[1], TASKS[2], TASKS[0]]
    adopt_tasks(config, None)  # acting
    assert len(config.objectives.tasks) == 3


def test_the_labelled_episodes_are_drawn_from_the_data_and_recorded(make_config, caplog):
    config = make_config()
    data = {"episode_index": list(range(8)), "tasks": [[TASKS[n % 2]] for n in range(8)]}
    adopt_labels(config, data)
    assert config.objectives.labelled == []  # all are
    config.objectives.label_fraction = 0.25
    with caplog.at_level("INFO", logger="lerobot_policy_multismolvla"):
        adopt_labels(config, data)
    assert {n % 2 for n in config.objectives.labelled} == {0, 1}
    assert "2 of the data's 8 episodes count as labelled (label_seed=0)" in caplog.text
    before = list(config.objectives.labelled)
    adopt_labels(config, None)  # acting
    assert config.objectives.labelled == before
    config.objectives.label_fraction = 1.0
    adopt_labels(config, data)
    assert config.objectives.labelled == []


def test_episodes_that_are_named_count_as_labelled_and_no_others(make_config, caplog):
    data = {"episode_index": list(range(8)), "tasks": [[TASKS[0]]] * 8}
    for fraction in (0.5, 1.0):
        config = make_config(objectives=ObjectivesOptions(label_fraction=fraction, label_episodes=[6, 1]))
        with caplog.at_level("INFO", logger="lerobot_policy_multismolvla"):
            adopt_labels(config, data)
        assert config.objectives.labelled == [1, 6]
        assert caplog.text.count("2 of the data's 8 episodes count as labelled (label_episodes)") == 1
        caplog.clear()
    config.objectives.label_episodes = [1, 8]
    with pytest.raises(ValueError, match=r"label_episodes names \[8\]; the data have the episodes 0 to 7"):
        adopt_labels(config, data)


@pytest.mark.parametrize("change", [{"tasks": ["another"]}, {"tasks": list(TASKS), "episodes": 1}])
def test_on_other_data_a_checkpoint_acts_and_is_not_trained(change, train, batch):
    """LeRobot's factory hands over the data both for training and for what is measured on recorded frames."""
    episodes = change.get("episodes", 4)
    meta = SimpleNamespace(
        features={},
        tasks=table(change["tasks"]),
        episodes={"episode_index": list(range(episodes)), "tasks": [[change["tasks"][0]]] * episodes},
    )
    own = train(**BOTH, label_episodes=[0, 3], label_fraction=0.5)
    policy = train(**BOTH, label_episodes=[0, 3], label_fraction=0.5, dataset_meta=meta, training=False)
    assert torch.equal(chunk(policy, batch), chunk(own, batch))
    with pytest.raises(ValueError, match=r"know the tasks|label_episodes names \[3\]"):
        policy.train()


def test_other_tasks_than_the_checkpoints_are_refused(make_config):
    config = make_config()
    config.objectives.robult.weight = 1.0
    config.objectives.tasks = list(TASKS)
    with pytest.raises(ValueError, match=r"\(robult\) know the tasks .*the data have.*multismolvla-export"):
        adopt_tasks(config, table(TASKS[:2]))
    with pytest.raises(ValueError, match=r"numbered \[0, 2, 5\].*tasks.parquet"):
        adopt_tasks(config, table(TASKS, [0, 2, 5]))
