"""From two RGB cameras to four senses: annotate, train and roll out as real processes, with the same ids."""

from __future__ import annotations

import json
import subprocess

import pytest
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from processes import allow_any_action, as_options, command, common, environment, finish, run, start
from safetensors.torch import load_file, save_file
from tiny_annotated import DOMAINS, MODALITIES, VIEWS, annotation, write_networks, write_rgb_dataset

from multismolvla.modalities import token_key
from multismolvla.tokenizers.recipe import NUM_OFFICIAL_LABELS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
FRAMES = 50
#: Frame of which one patch is changed; shown long before, because a picture that stays counts as frozen.
CHANGED = 25


def as_bytes(picture: torch.Tensor) -> torch.Tensor:
    return picture if picture.dtype == torch.uint8 else (picture * 255).round().to(torch.uint8)


def test_a_robot_with_two_rgb_cameras_acts_on_the_ids_that_training_saw(hub, tmp_path):
    networks = write_networks(tmp_path / "networks")
    shown = {view: [] for view in VIEWS}  # uint8 (3, H, W) each
    ids = {modality: [] for modality in MODALITIES}  # of the same frames, (V, N) each
    for kind in ("raw", "video"):
        source = write_rgb_dataset(tmp_path / f"{kind}_rgb", FRAMES, video=kind == "video")
        options = annotation(source, tmp_path / kind, hub / "fourm", networks)
        options |= {"batch_size": 16} if kind == "video" else {}
        run("multismolvla-annotate", *as_options(options))
        data = LeRobotDataset("tests/all", root=tmp_path / kind, return_uint8=True)
        for item in (data[row] for row in reversed(range(FRAMES))):  # not as annotate met them
            for view, streams in VIEWS.items():
                shown[view].append(as_bytes(item[streams["rgb"]]))
            for modality, found in ids.items():
                found.append(torch.stack([item[token_key(view, modality)] for view in VIEWS]).long())
    changed = shown["image"][CHANGED].clone()
    changed[:, :16, :16] = 255 - changed[:, :16, :16]
    shown["image"].append(changed)
    shown["image2"].append(shown["image2"][CHANGED])

    trained = tmp_path / "trained"
    options = [
        *common(tmp_path / "raw", trained, 2, 2), "--policy.type=multismolvla", "--policy.stage=connector",
        f"--policy.base_checkpoint={hub / 'base'}", f"--policy.vlm_model_name={hub / 'vlm'}",
        f"--policy.encoder={hub / 'fourm'}", f"--policy.domains={json.dumps(DOMAINS)}",
        f"--policy.views={json.dumps(VIEWS)}", f"--policy.num_labels={NUM_OFFICIAL_LABELS}",
        "--policy.image_size=64", "--policy.load_vlm_weights=false",
        "--policy.fusion_grid=8", "--policy.connector_grid=8", "--policy.connector_hidden=64",
        "--policy.chunk_size=4", "--policy.n_action_steps=1", "--policy.num_vlm_layers=2",
        "--policy.resize_imgs_with_padding=[64,64]", "--policy.dtype=float32", "--policy.device=cpu",
        "--policy.num_steps=1",
    ]  # fmt: skip
    finish(start(trained, *options), trained)
    allow_any_action(trained / "checkpoints/last/pretrained_model")

    pictures = {view: torch.stack(frames) for view, frames in shown.items()}
    frames = {view: stack.permute(0, 2, 3, 1).contiguous() for view, stack in pictures.items()}
    save_file(frames, tmp_path / "frames.safetensors")
    report = tmp_path / "looks.safetensors"
    rollout = [
        "lerobot-rollout", f"--policy.path={trained / 'checkpoints/last/pretrained_model'}",
        "--policy.device=cpu", "--device=cpu", "--robot.discover_packages_path=replay_arm",
        "--robot.type=replay_arm", "--robot.id=test", f"--robot.frames={tmp_path / 'frames.safetensors'}",
        f"--robot.report={report}", "--task=push", "--fps=30", "--duration=600", "--play_sounds=false",
        "--return_to_initial_position=false",
    ]  # fmt: skip
    lost = networks | {"thermal": str(tmp_path / "nowhere")}
    words = [command(rollout[0]), *rollout[1:], f"--policy.estimator_sources={json.dumps(lost)}"]
    refused = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=300)
    assert refused.returncode != 0
    assert "without, or with what a sensor delivers: --policy.missing_estimator=absent" in refused.stderr
    assert not report.exists()  # nothing was looked at

    run(*rollout, f"--policy.estimator_sources={json.dumps(networks)}")
    looks = load_file(report)  # one frame at a time
    entered = looks["values.rgb@64"].unflatten(0, (len(looks["rgb.image"]), len(VIEWS)))
    met, same = {}, {modality: [] for modality in MODALITIES}  # row -> its RGB at the encoder
    for number, rgb in enumerate(as_bytes(looks["rgb.image"])):
        (row,) = (pictures["image"] == rgb).flatten(1).all(1).nonzero().flatten().tolist()
        met[row] = entered[number]
        for modality, wanted in ids.items():
            found = looks[DOMAINS[modality]][number]
            if row < FRAMES:
                assert torch.equal(found, wanted[row]), (row, modality)
            elif row < 2 * FRAMES:  # annotated in batches
                same[modality].append(found == wanted[row])
            else:  # one patch of one camera was changed
                assert not torch.equal(found[0], wanted[CHANGED][0]), modality
                assert torch.equal(found[1], wanted[CHANGED][1]), modality
    assert set(met) == set(range(2 * FRAMES + 1))
    assert not torch.equal(met[2 * FRAMES][0], met[CHANGED][0])
    assert torch.equal(met[2 * FRAMES][1], met[CHANGED][1])
    for modality, equal in same.items():
        assert torch.stack(equal).float().mean() > 0.99, modality
