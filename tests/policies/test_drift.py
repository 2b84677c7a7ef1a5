"""What we rely on inside LeRobot 0.6.1: if an upgrade changes one of these, this file says which, before a
user does.
"""

from __future__ import annotations

import importlib.metadata
import inspect
from pathlib import Path
from typing import Any

import pytest
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.policies.smolvla import processor_smolvla
from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy, VLAFlowMatching
from lerobot.policies.smolvla.smolvlm_with_expert import SmolVLMWithExpertModel
from lerobot.processor import ObservationProcessorStep
from lerobot.scripts import lerobot_train
from safetensors import safe_open

from lerobot_policy_multismolvla.adoption import AdoptedVLM
from lerobot_policy_multismolvla.modeling_multismolvla import MultiSmolVLAPolicy

RECORDED = Path(__file__).parents[1] / "fixtures" / "recorded" / "smolvla_0.6.1_keys.txt"

#: ours or reused -> parameters after self, "=" marks a default, "**" the catch-all
SIGNATURES: dict[Any, dict[str, str]] = {
    SmolVLAPolicy: {
        "__init__": "config **kwargs",
        "reset": "",
        "supports_rtc": "",
        "prepare_images": "batch",
        "prepare_state": "batch",
        "prepare_action": "batch",
        "forward": "batch noise= time= reduction=",
        "predict_action_chunk": "batch noise= **kwargs",
        "select_action": "batch noise= **kwargs",
        "_get_action_chunk": "batch noise= **kwargs",
        "get_optim_params": "",
        "_get_default_peft_targets": "",
        "_validate_peft_config": "peft_config",
    },
    VLAFlowMatching: {
        "__init__": "config rtc_processor=",
        "embed_prefix": "images img_masks lang_tokens lang_masks state=",
        "forward": "images img_masks lang_tokens lang_masks state actions noise= time=",
        "sample_actions": "images img_masks lang_tokens lang_masks state noise= **kwargs",
        "denoise_step": "prefix_pad_masks past_key_values x_t timestep",
        "sample_noise": "shape device",
        "sample_time": "bsize device",
    },
    SmolVLMWithExpertModel: {
        "train": "mode=",
        "embed_image": "image",
        "embed_language_tokens": "tokens",
        "set_requires_grad": "",
        "get_vlm_model": "",
        "forward": "attention_mask= position_ids= past_key_values= inputs_embeds= use_cache=",
    },
    PreTrainedPolicy: {
        "save_pretrained": "save_directory state_dict= repo_id= push_to_hub= card_kwargs= "
        "**push_to_hub_kwargs",
        "_save_pretrained": "save_directory state_dict=",
        "from_pretrained": "pretrained_name_or_path config= force_download= resume_download= proxies= "
        "token= cache_dir= local_files_only= revision= strict= **kwargs",
        "_load_as_safetensor": "model model_file map_location strict",
        "wrap_with_peft": "peft_config= peft_cli_overrides=",
    },
    ObservationProcessorStep: {"observation": "observation"},
    processor_smolvla: {"make_smolvla_pre_post_processors": "config dataset_stats="},
}


def parameters(function: Any) -> str:
    words = []
    for p in inspect.signature(function).parameters.values():
        if p.name == "self":
            continue
        stars = {p.VAR_KEYWORD: "**", p.VAR_POSITIONAL: "*"}.get(p.kind, "")
        words.append(f"{stars}{p.name}{'' if p.default is p.empty else '='}")
    return " ".join(words)


@pytest.mark.parametrize(
    ("owner", "name", "expected"),
    [(o, n, e) for o, methods in SIGNATURES.items() for n, e in methods.items()],
    ids=lambda x: getattr(x, "__name__", x) if not isinstance(x, str) or " " not in x else "",
)
def test_upstreams_signatures_are_those_we_build_on(owner, name, expected):
    assert parameters(getattr(owner, name)) == expected


@pytest.mark.parametrize("ours", [MultiSmolVLAPolicy, AdoptedVLM])
def test_our_overrides_accept_what_the_parents_accept(ours):
    parent = ours.__mro__[1]
    for name, function in vars(ours).items():
        if name == "__init__" or not callable(getattr(parent, name, None)):
            continue
        theirs = inspect.signature(getattr(parent, name)).parameters
        mine = inspect.signature(getattr(ours, name)).parameters
        catch_all = any(p.kind is p.VAR_KEYWORD for p in mine.values())
        missing = [p for p in theirs if p not in mine and not catch_all]
        assert not missing, f"{ours.__name__}.{name} lacks {missing} of {parent.__name__}.{name}"
        assert callable(function) or isinstance(function, classmethod)


def test_the_state_dict_has_the_recorded_keys_and_shapes(hub):
    with safe_open(hub / "base" / "model.safetensors", "pt") as file:
        shapes = {k: file.get_slice(k).get_shape() for k in file.keys()}  # noqa: SIM118
        found = {f"{k} {'x'.join(map(str, shape))}" for k, shape in shapes.items()}
    recorded = set(RECORDED.read_text().splitlines())
    assert found == recorded, f"new: {sorted(found - recorded)[:5]}, gone: {sorted(recorded - found)[:5]}"


def test_the_vision_path_hangs_where_we_take_it_off(make_policy):
    vlm = make_policy(vision_tower="siglip", stage="robust").model.vlm_with_expert
    assert type(vlm) is SmolVLMWithExpertModel
    inner = vlm.get_vlm_model()
    assert inner is vlm.vlm.model
    assert {n for n, _ in inner.named_children()} == {"vision_model", "connector", "text_model"}
    assert {"train_expert_only", "freeze_vision_encoder"} <= vars(vlm).keys()


def test_the_trainer_calls_update_and_trains_through_forward():
    # NOTE: lerobot 0.6.1; the main branch calls policy(batch) instead, which is the same for us
    source = inspect.getsource(lerobot_train.update_policy)
    assert 'has_method(accelerator.unwrap_model(policy, keep_fp32_wrapper=True), "update")' in source
    assert "policy.forward(batch)" in source


def test_the_configurations_fields_still_exist():
    upstream = set(SmolVLAConfig.__dataclass_fields__)
    used = {
        "chunk_size", "n_action_steps", "resize_imgs_with_padding", "empty_cameras", "train_expert_only",
        "num_vlm_layers",
        "freeze_vision_encoder", "add_image_special_tokens", "load_vlm_weights", "vlm_model_name",
        "optimizer_lr",
        "push_to_hub", "normalization_mapping", "pretrained_path", "use_peft", "rtc_config", "input_features",
    }  # fmt: skip
    assert used <= upstream


def test_the_version_is_one_that_was_looked_at():
    version = importlib.metadata.version("lerobot")
    assert version == "0.6.1", (
        f"lerobot {version}: pyproject.toml pins <0.6.2, because 0.6.2 changes how a policy is saved and "
        "where its dtype is read. Read the changes, then widen the pin and this test."
    )
