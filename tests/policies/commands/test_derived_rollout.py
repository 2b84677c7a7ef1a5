"""From two RGB cameras to four senses: annotate, train and roll out as real processes, with the same ids."""

from __future__ import annotations

import json

import pytest
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from processes import as_options, common, finish, run, start
from safetensors.torch import load_file, save_file
from tiny_annotated import DOMAINS, MODALITIES, RGB, VIEWS, annotation, write_networks, write_rgb_dataset

from multismolvla.modalities import token_key

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]
FRAMES = 50


def as_bytes(picture: torch.Tensor) -> torch.Tensor:
    return (picture * 255).round().to(torch.uint8)


def test_a_robot_with_two_rgb_cameras_acts_on_the_ids_that_training_saw(hub, tmp_path):
    networks = write_networks(tmp_path / "networks")
    source = write_rgb_dataset(tmp_path / "rgb", FRAMES)
    run("multismolvla-annotate", *as_options(annotation(source, tmp_path / "all", hub / "fourm", networks)))
    trained = tmp_path / "trained"
    options = [
        *common(tmp_path / "all", trained, 2, 2), "--policy.type=multismolvla", "--policy.stage=connector",
        f"--policy.base_checkpoint={hub / 'base'}", f"--policy.vlm_model_name={hub / 'vlm'}",
        f"--policy.encoder={hub / 'fourm'}", f"--policy.domains={json.dumps(DOMAINS)}",
        f"--policy.views={json.dumps(VIEWS)}", "--policy.image_size=64", "--policy.load_vlm_weights=false",
        "--policy.fusion_grid=8", "--policy.connector_grid=8", "--policy.connector_hidden=64",
        "--policy.chunk_size=4", "--policy.n_action_steps=1", "--policy.num_vlm_layers=2",
        "--policy.resize_imgs_with_padding=[64,64]", "--policy.dtype=float32", "--policy.device=cpu",
        "--policy.num_steps=1",
    ]  # fmt: skip
    finish(start(trained, *options), trained)

    data = LeRobotDataset("tests/all", root=tmp_path / "all", return_uint8=True)
    items = [data[row] for row in range(FRAMES)]
    order = list(reversed(range(FRAMES)))  # not as annotate met them, and one at a time
    shown = {
        view: torch.stack([as_bytes(items[row][streams["rgb"]]).permute(1, 2, 0) for row in order])
        for view, streams in VIEWS.items()
    }
    save_file({view: frames.contiguous() for view, frames in shown.items()}, tmp_path / "frames.safetensors")
    run(
        "lerobot-rollout",
        f"--policy.path={trained / 'checkpoints/last/pretrained_model'}", "--policy.device=cpu",
        f"--policy.estimator_sources={json.dumps(networks)}", "--device=cpu",
        "--robot.discover_packages_path=replay_arm", "--robot.type=replay_arm", "--robot.id=test",
        f"--robot.frames={tmp_path / 'frames.safetensors'}",
        f"--robot.report={tmp_path / 'looks.safetensors'}",
        "--task=push", "--fps=30", "--duration=15", "--play_sounds=false",
        "--return_to_initial_position=false",
    )  # fmt: skip
    looks = load_file(tmp_path / "looks.safetensors")
    pictures = torch.stack([as_bytes(item[RGB[0]]) for item in items])
    met = set()
    for number, rgb in enumerate(as_bytes(looks["rgb.image"])):
        (row,) = (pictures == rgb).flatten(1).all(1).nonzero().flatten().tolist()
        met.add(row)
        for modality in MODALITIES:
            wanted = torch.stack([items[row][token_key(view, modality)] for view in VIEWS]).long()
            assert torch.equal(looks[DOMAINS[modality]][number], wanted), (row, modality)
    assert len(met) == FRAMES
