"""Rule 9 with the official stack in miniature: both stages through ``lerobot-train``, from ids and from
pictures.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lerobot.configs.policies import PreTrainedConfig
from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.policies.factory import make_policy, make_pre_post_processors
from processes import as_options, common, finish, logged, start
from safetensors.torch import load_file
from tiny_dataset import REPO_ID
from tiny_official import official_options, write_official

from multismolvla.modalities import MODALITIES, default_view_map
from multismolvla_data.tokens import TokensConfig, cache_tokens

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

VIEWS = {"image": default_view_map()["image"]}
STEPS = 3
SOFT = "encoder_embeddings.soft_thermal@224."


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_official(tmp_path_factory.mktemp("official"))


@pytest.fixture(scope="module")
def ids(files, tiny_dataset, tmp_path_factory) -> Path:
    options = official_options(files)
    names = ("tokenizers", "tokenizer_sources", "seg_labels", "imagebind", "imagebind_rows", "image_size")
    return cache_tokens(
        TokensConfig(
            dataset=tiny_dataset, output=tmp_path_factory.mktemp("ids") / "ids", encoder=files / "fourm21",
            views=VIEWS,
            domains={m: d for m, d in options["domains"].items() if m != "rgb"},
            **{n: options[n] for n in names},
        )
    )  # fmt: skip


@pytest.fixture(scope="module")
def runs(files, ids, hub, tiny_dataset, tmp_path_factory) -> dict[str, tuple[Path, Path, str]]:
    """Per route: data, last checkpoint of stage 2 and both logs. The two routes run side by side."""
    root = tmp_path_factory.mktemp("runs")
    data = {"vision": ids, "soft": tiny_dataset}
    folders = {route: (root / f"{route}_one", root / f"{route}_two") for route in data}
    fixed = {
        "type": "multismolvla", "stage": "connector", "base_checkpoint": str(hub / "base"),
        "vlm_model_name": str(hub / "vlm"),
        "load_vlm_weights": False, "connector_hidden": 64, "chunk_size": 4, "n_action_steps": 2,
        "num_vlm_layers": 2,
        "resize_imgs_with_padding": [64, 64], "dtype": "float32", "device": "cpu", "num_steps": 3,
        "views": VIEWS,
    }  # fmt: skip
    first = {
        route: start(
            one,
            *common(data[route], one, STEPS, STEPS),
            *as_options(fixed | official_options(files, route), "policy."),
        )
        for route, (one, _) in folders.items()
    }
    logs = {route: finish(process, folders[route][0]) for route, process in first.items()}
    second = {
        route: start(
            two, *common(data[route], two, STEPS, STEPS),
            f"--policy.path={one / 'checkpoints/last/pretrained_model'}",
            *as_options({
                "stage": "robust", "curriculum_steps": STEPS, "corruption_probability": 0.9,
                "corruption_ramp": 0.5,
                "corruption_source": "ids" if route == "vision" else "live",
            }, "policy."),
            "--peft.method_type=LORA", "--peft.r=2",
        )
        for route, (one, two) in folders.items()
    }  # fmt: skip
    logs = {route: logs[route] + finish(process, folders[route][1]) for route, process in second.items()}
    return {
        route: (data[route], folders[route][1] / "checkpoints/last/pretrained_model", logs[route])
        for route in data
    }


@pytest.mark.parametrize("route", ["vision", "soft"])
def test_both_stages_run_and_each_modality_changes_the_action(route, runs, tiny_dataset):
    data, checkpoint, log = runs[route]
    assert len(logged("losses_after_forward", log)) == 2 * STEPS
    assert max(logged("pictures_disturbed", log)) > 0
    assert ("reads cached ids of observation.tokens.image.depth" in log) == (route == "vision")
    assert ("Reading the weights of the depth tokenizer" in log) == (route == "soft")
    config = PreTrainedConfig.from_pretrained(checkpoint)
    config.pretrained_path = checkpoint
    policy = make_policy(config, ds_meta=LeRobotDatasetMetadata(REPO_ID, root=data)).eval()
    pre, _ = make_pre_post_processors(
        config,
        pretrained_path=str(checkpoint),
        preprocessor_overrides={"device_processor": {"device": "cpu"}},
    )
    scenes = LeRobotDataset(REPO_ID, root=tiny_dataset, depth_output_unit="m")

    def observation(row: int) -> dict:
        item = scenes[row]
        return {k: v for k, v in item.items() if k.startswith("observation.") or k == "task"}

    def act(frame: dict) -> torch.Tensor:
        noise = torch.randn(1, 4, 32, generator=torch.Generator().manual_seed(0))
        return policy.predict_action_chunk(pre(dict(frame)), noise=noise)

    here, elsewhere = observation(3), observation(9)
    before = act(here)
    assert before.isfinite().all()
    for modality in MODALITIES:
        key = VIEWS["image"][modality]
        assert not torch.allclose(act(here | {key: elsewhere[key]}), before, atol=1e-6), modality


def test_only_route_soft_saves_a_map_and_stage_two_goes_on_training_it(runs):
    adapters = {route: load_file(runs[route][1] / "adapter_model.safetensors") for route in runs}
    assert not any("tower" in k for k in adapters["vision"])
    trained = {k: v for k, v in adapters["soft"].items() if SOFT in k}
    assert len(trained) >= 3
    one = load_file(
        runs["soft"][1].parents[3] / "soft_one/checkpoints/last/pretrained_model/model.safetensors"
    )
    for key in (f"{SOFT}mod_emb", f"{SOFT}emb_proj.weight"):
        first, second = (next(v for k, v in state.items() if k.endswith(key)) for state in (one, trained))
        assert not torch.equal(first, second)
