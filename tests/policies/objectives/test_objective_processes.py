"""Objectives in processes of their own: two ranks, and LeRobot's own trainer."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys

import pytest
import torch
from processes import command, common, environment, finish, free_port, logged, start
from safetensors.torch import load_file
from tiny_dataset import write_dataset

from multismolvla.fourm import MINI_DOMAINS
from multismolvla.modalities import default_view_map

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

STEPS = 6
ROBULT = ["--policy.objectives.robult.weight=1"]
SECOND = ["--policy.objectives.robult.unlabelled={second}", "--policy.objectives.robult.unlabelled_workers=0"]
RLBIND = ["--policy.objectives.rlbind.weight=1", "--policy.objectives.rlbind.attack_steps=2"]


# -- two ranks -----------------------------------------------------------------------------------------------


def ranks(checkpoint, output, world: int) -> list[dict]:
    """What `two_ranks.step` says of each rank."""
    port = str(free_port())
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "two_ranks.step", str(checkpoint), str(output)],
            env=environment() | {"RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1",
                                 "MASTER_PORT": port},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]  # fmt: skip
    said = [process.communicate(timeout=300)[1] for process in running]
    assert [process.returncode for process in running] == [0] * world, said[0][-3000:]
    return [json.loads(output.with_name(f"{output.name}{rank}").read_text()) for rank in range(world)]


def test_two_ranks_compare_the_samples_of_both(train, pictures_alone, tmp_path):
    """Terms, gradients and running statistics are those of one process with the whole batch."""
    second = {"unlabelled": str(pictures_alone), "unlabelled_ratio": 0.5, "unlabelled_workers": 0}
    policy = train(
        robult={"weight": 1.0, **second}, rlbind={"weight": 1.0}, dropout_mode="none", curriculum_step=50,
        curriculum_stage="robust",
    )  # fmt: skip
    policy.save_pretrained(tmp_path / "two")
    (alone,) = ranks(tmp_path / "two", tmp_path / "alone", 1)
    both = ranks(tmp_path / "two", tmp_path / "both", 2)
    compared = ("robult_contrastive", "rlbind_anchor", "rlbind_distribution")
    for rank in both:
        assert rank["logs"]["robult_labelled"] == pytest.approx(2 / 3)
        assert rank["logs"]["rlbind_adversarial"] > 0
        for name in compared:
            assert rank["logs"][name] == pytest.approx(alone["logs"][name], rel=1e-4)
        for kind in ("gradients", "buffers"):
            assert rank[kind].keys() == alone[kind].keys()
            for name, values in rank[kind].items():
                expected = torch.tensor(alone[kind][name])
                assert torch.allclose(torch.tensor(values), expected, rtol=1e-3, atol=1e-6), name
    # a rank by itself would say something else
    assert both[0]["logs"]["robult_reconstruction"] != pytest.approx(both[1]["logs"]["robult_reconstruction"])


# -- lerobot-train -------------------------------------------------------------------------------------------


def stage_one(data, hub, folder, *words: str) -> list[str]:
    return [
        *common(data, folder, STEPS, STEPS // 2), "--policy.type=multismolvla", "--policy.stage=connector",
        f"--policy.base_checkpoint={hub / 'base'}", f"--policy.vlm_model_name={hub / 'vlm'}",
        f"--policy.encoder={hub / 'fourm'}", f"--policy.domains={json.dumps(MINI_DOMAINS)}",
        "--policy.image_size=64", "--policy.load_vlm_weights=false", "--policy.fusion_grid=8",
        "--policy.connector_grid=8", "--policy.connector_hidden=64", "--policy.chunk_size=4",
        "--policy.n_action_steps=2", "--policy.num_vlm_layers=2",
        "--policy.resize_imgs_with_padding=[64,64]", "--policy.dtype=float32", "--policy.device=cpu",
        f"--policy.curriculum_steps={STEPS}", *words,
    ]  # fmt: skip


def stage_two(data, checkpoint, folder, *words: str) -> list[str]:
    return [
        *common(data, folder, STEPS, STEPS // 2), f"--policy.path={checkpoint}", "--policy.stage=robust",
        f"--policy.curriculum_steps={STEPS}", "--peft.method_type=LORA", "--peft.r=4", *words,
    ]  # fmt: skip


def last(folder):
    return folder / "checkpoints/last/pretrained_model"


@pytest.fixture(scope="module")
def connector_run(hub, tiny_dataset, pictures_alone, tmp_path_factory):
    """Stage 1 with Robult from the first step on, and unlabelled frames that another process reads."""
    folder = tmp_path_factory.mktemp("objectives") / "one"
    second = [SECOND[0].format(second=pictures_alone), "--policy.objectives.robult.unlabelled_workers=1"]
    log = finish(start(folder, *stage_one(tiny_dataset, hub, folder, *ROBULT, *second)), folder)
    return folder, log


def test_stage_one_trains_with_robult(connector_run):
    folder, log = connector_run
    assert len(logged("robult", log)) == STEPS
    assert all(math.isfinite(value) and value > 0 for value in logged("robult", log))
    assert set(logged("robult_scale", log)) == {1.0}
    assert set(logged("robult_labelled", log)) == {0.5}
    assert "robult begins with 1 tasks" in log
    config = json.loads((last(folder) / "config.json").read_text())
    assert config["objectives"]["tasks"] == ["put the cube in the basket"]
    weights = load_file(last(folder) / "model.safetensors")
    assert any(k.startswith("model.objectives.robult.") for k in weights)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "robult",
            [*ROBULT, *SECOND, "--policy.objectives.label_fraction=0.5", "--policy.objectives.label_seed=3"],
        ),
        ("rlbind", ["--policy.objectives.robult.weight=0", *RLBIND]),
        ("consistency", ["--policy.objectives.robult.weight=0", "--policy.consistency_weight=0.5"]),
    ],
)
def test_stage_two_trains_adapters_with_each_objective_and_resumes_exactly(
    name, words, connector_run, tiny_dataset, pictures_alone
):
    whole = connector_run[0].with_name(name)
    words = [word.format(second=pictures_alone) for word in words]
    log = finish(start(whole, *stage_two(tiny_dataset, last(connector_run[0]), whole, *words)), whole)
    assert len(logged(name, log)) == STEPS
    assert all(math.isfinite(value) for value in logged(name, log))
    for said in (
        "1 of the data's 2 episodes count as labelled (label_seed=3)",
        f"{pictures_alone}: 24 frames",
    ):
        assert (said in log) == (name == "robult")
    torn = whole.with_name(f"{name}_torn")
    half = torn / f"checkpoints/{STEPS // 2:06d}"
    shutil.copytree(whole / f"checkpoints/{STEPS // 2:06d}", half)
    again = finish(
        start(torn, f"--config_path={half / 'pretrained_model/train_config.json'}", "--resume=true",
              f"--output_dir={torn}"),
        torn,
    )  # fmt: skip
    assert logged("step", again) == list(range(STEPS // 2 + 1, STEPS + 1))
    expected, found = (load_file(last(f) / "adapter_model.safetensors") for f in (whole, torn))
    assert expected.keys() == found.keys()
    assert name == "consistency" or any(f".objectives.{name}." in k for k in expected)
    for key, value in expected.items():
        assert torch.allclose(found[key], value, atol=1e-6), key


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--policy.objectives.label_fraction=0"], "label_fraction=0.0 must lie in (0, 1]"),
        ([*ROBULT, *SECOND], "one_camera shows other views than --policy.views: it lacks ['observation.im"),
    ],
    ids=["label_fraction", "second_data_set"],
)
def test_a_wrong_option_ends_the_run_before_it_trains(words, message, connector_run, tiny_dataset, tmp_path):
    second = tmp_path / "one_camera"
    write_dataset(second, episodes=1, without=[*default_view_map()["image2"].values()])
    folder = tmp_path / "wrong"
    options = [word.format(second=second) for word in words]
    process = start(folder, *stage_two(tiny_dataset, last(connector_run[0]), folder, *options))
    assert process.wait(timeout=200) != 0
    said = folder.with_suffix(".log").read_text()
    assert message in said
    assert "Start offline training" not in said


def test_two_processes_of_the_trainer_share_one_contrastive_batch(
    connector_run, tiny_dataset, pictures_alone
):
    folder = connector_run[0].with_name("distributed")
    second = [word.format(second=pictures_alone) for word in SECOND]
    words = stage_two(tiny_dataset, last(connector_run[0]), folder, *ROBULT, *second, *RLBIND)
    # accelerate launch starts several processes without a GPU through MPI alone
    launcher = [command("torchrun"), "--nproc_per_node=2", f"--master_port={free_port()}", "--no_python"]
    done = subprocess.run(
        [*launcher, command("lerobot-train"), *words],
        env=environment() | {"ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        timeout=380,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said[-4000:]
    assert "Effective batch size: 2 x 2 = 4" in said
    assert all(math.isfinite(v) for n in ("robult", "rlbind") for v in logged(n, said))
    assert len(logged("robult", said)) == STEPS
    assert set(logged("robult_labelled", said)) == {0.5}
