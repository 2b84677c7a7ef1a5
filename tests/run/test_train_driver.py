"""The training driver: presets, decisions after every kind of interruption, and its command line.

A stand-in for lerobot-train writes checkpoints in LeRobot's layout and can be told to die, so that these
tests take seconds; the real program is driven by the end-to-end tests.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from multismolvla_run import pipeline, presets, process, stages, threads

REPO = Path(__file__).resolve().parents[2]

# Understands what the driver passes; `die_at` makes it end there: by an error, or as `kill -9` would.
FAKE_TRAINER = """
import json, os, signal, sys, time
from pathlib import Path
args = dict(a[2:].split("=", 1) for a in sys.argv[1:] if a.startswith("--"))
start = 0
if args.get("resume") == "true":
    checkpoint = Path(args["config_path"]).parents[1]
    start = json.loads((checkpoint / "training_state/training_step.json").read_text())["step"]
    args = {**json.loads(Path(args["config_path"]).read_text()), **args}
out = Path(args["output_dir"])
if args.get("resume") != "true" and out.exists():
    sys.exit(f"FileExistsError: {out}")
steps, every = int(args["steps"]), int(args.get("save_freq", 2))
plan = Path(os.environ["FAKE_PLAN"])
die = json.loads(plan.read_text()) if plan.exists() else {}
print("INFO starting", flush=True)
for step in range(start + 1, steps + 1):
    bar = f"Training: {step}|#| {step - start}/{steps - start} [00:01<00:02, 1.0step/s]"
    print(bar, end="\\r", flush=True)
    with open(os.environ["FAKE_TRACE"], "a") as trace:
        trace.write(f"{out.name} {step}\\n")
    if die.get("stage") == out.name and die.get("step") == step:
        plan.unlink()
        if die["how"] == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if die["how"] == "hang":
            time.sleep(60)
        sys.exit("boom: something named went wrong")
    if step % every == 0 or step == steps:
        print(f"INFO step:{step} smpl:8 loss:0.{step:03d} lr:1e-3", flush=True)
        folder = out / "checkpoints" / f"{step:06d}"
        (folder / "pretrained_model").mkdir(parents=True, exist_ok=True)
        (folder / "training_state").mkdir(exist_ok=True)
        (folder / "pretrained_model/train_config.json").write_text(json.dumps(args))
        (folder / "training_state/training_step.json").write_text(json.dumps({"step": step}))
        for name in ("rng_state.safetensors", "optimizer_state.safetensors"):
            (folder / "training_state" / name).write_text("x")
        (folder / "training_state/scheduler_state.json").write_text("{}")
"""
FAKE_MODULE = """
import sys
from pathlib import Path
args = dict(a[2:].split("=", 1) for a in sys.argv[1:])
Path(args["output"]).mkdir(parents=True)
(Path(args["output"]) / "done.json").write_text("{}")
"""


@pytest.fixture
def sandbox(tmp_path, monkeypatch):
    """A preset of three stages, a data set, and the fakes in place of lerobot-train and the module."""
    (tmp_path / "fake_trainer.py").write_text(FAKE_TRAINER)
    (tmp_path / "fake_stage.py").write_text(FAKE_MODULE)
    (tmp_path / "data/meta").mkdir(parents=True)
    (tmp_path / "data/meta/info.json").write_text('{"total_episodes": 3}')
    configs = tmp_path / "configs"
    configs.mkdir()
    preset = {
        "description": "for tests",
        "dataset": str(tmp_path / "data"),
        "output": str(tmp_path / "out"),
        "train_args": {"dataset.root": "{dataset}", "save_freq": 2},
        "stages": {
            "warm": {"run": "fake_stage", "args": {"output": "{here}"}, "produces": ["done.json"]},
            "base": {"run": "lerobot-train", "steps": 5, "args": {"policy.path": "{stage:warm}"}},
            "top": {
                "run": "lerobot-train",
                "steps": 4,
                "args": {"policy.path": "{stage:base}", "flag": True},
            },
        },
    }
    (configs / "toy.yaml").write_text(yaml.safe_dump(preset, sort_keys=False))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("FAKE_PLAN", str(tmp_path / "die.json"))
    monkeypatch.setenv("FAKE_TRACE", str(tmp_path / "trace.txt"))
    program = stages.program

    def fake_program(run, stage):
        return [sys.executable, str(tmp_path / "fake_trainer.py")] if stage.trains else program(run, stage)

    monkeypatch.setattr(stages, "program", fake_program)
    # the fakes have options of their own
    monkeypatch.setattr(pipeline, "check_training_options", lambda run: None)
    return tmp_path


def drive(sandbox: Path, *args: str) -> int:
    return pipeline.main(["toy", *args], configs=sandbox / "configs")


def trace(sandbox: Path) -> list[str]:
    path = sandbox / "trace.txt"
    return path.read_text().splitlines() if path.exists() else []


def die(sandbox: Path, stage: str, step: int, how: str = "error") -> None:
    (sandbox / "die.json").write_text(json.dumps({"stage": stage, "step": step, "how": how}))


ALL = [*(f"base {i}" for i in range(1, 6)), *(f"top {i}" for i in range(1, 5))]


def test_runs_all_stages_then_skips_them(sandbox, capsys):
    assert drive(sandbox) == 0
    assert trace(sandbox) == ALL
    output = capsys.readouterr().out
    assert "--policy.path=" + str(sandbox / "out/base/checkpoints/000005/pretrained_model") in output
    assert "--flag=true" in output
    assert drive(sandbox) == 0
    assert trace(sandbox) == ALL
    assert capsys.readouterr().out.count("finished") == 3


@pytest.mark.parametrize("how", ["error", "kill"])
def test_interrupted_after_a_checkpoint_resumes_there(sandbox, how, capsys):
    die(sandbox, "base", 4, how)
    assert drive(sandbox) == 1
    error = capsys.readouterr().err
    if how == "error":
        assert "boom: something named went wrong" in error
    assert "Start the same command again" in error
    assert drive(sandbox) == 0
    assert "from step 2" in capsys.readouterr().out
    assert trace(sandbox) == ["base 1", "base 2", "base 3", "base 4", "base 3", "base 4", "base 5", *ALL[5:]]


def test_interrupted_before_a_checkpoint_starts_clean(sandbox, capsys):
    die(sandbox, "base", 1)
    assert drive(sandbox) == 1
    (sandbox / "out/base").mkdir(exist_ok=True)  # lerobot-train refuses a folder that exists
    assert drive(sandbox) == 0
    assert trace(sandbox) == ["base 1", *ALL]


def test_half_written_checkpoint_is_not_resumed(sandbox):
    die(sandbox, "base", 5)
    assert drive(sandbox) == 1
    (sandbox / "out/base/checkpoints/000004/training_state/scheduler_state.json").write_text('{"half')
    assert stages.latest_checkpoint(sandbox / "out/base") == (sandbox / "out/base/checkpoints/000002", 2)


def test_half_written_final_checkpoint_is_not_finished(sandbox):
    assert drive(sandbox, "--until", "base") == 0
    (sandbox / "out/base/checkpoints/000005/training_state/scheduler_state.json").unlink()
    assert drive(sandbox, "--until", "base") == 0
    assert trace(sandbox)[-1] == "base 5"
    assert trace(sandbox).count("base 5") == 2


def test_changed_setting_is_refused_by_name(sandbox, capsys):
    assert drive(sandbox, "--until", "base") == 0
    path = sandbox / "configs/toy.yaml"
    preset = yaml.safe_load(path.read_text())
    preset["stages"]["base"]["steps"] = 7
    path.write_text(yaml.safe_dump(preset, sort_keys=False))
    assert drive(sandbox) == 2
    error = capsys.readouterr().err
    assert "steps: 5 -> 7" in error
    assert "--repeat=base" in error
    assert drive(sandbox, "--repeat=base") == 0
    assert trace(sandbox)[5:12] == [f"base {i}" for i in range(1, 8)]


def test_changed_dataset_is_refused(sandbox, capsys):
    assert drive(sandbox, "--until", "base") == 0
    (sandbox / "data/meta/info.json").write_text('{"total_episodes": 4}')
    assert drive(sandbox) == 2
    assert "dataset:" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--from", "base"], ["--from=base"]])
def test_the_former_name_of_repeat_is_answered_with_the_new_one(sandbox, capsys, words):
    assert drive(sandbox, *words) == 2
    assert "--repeat" in capsys.readouterr().err


def test_repeat_takes_later_stages_along(sandbox):
    assert drive(sandbox) == 0
    assert drive(sandbox, "--repeat=top") == 0
    assert trace(sandbox) == [*ALL, *ALL[5:]]


def test_foreign_folder_is_left_alone(sandbox, capsys):
    (sandbox / "out/base").mkdir(parents=True)
    precious = sandbox / "out/base/precious.txt"
    precious.write_text("mine")
    assert drive(sandbox) == 2
    assert "did not make it" in capsys.readouterr().err
    assert precious.read_text() == "mine"


def test_moved_output_stays_finished(sandbox):
    assert drive(sandbox) == 0
    (sandbox / "out").rename(sandbox / "elsewhere")
    assert drive(sandbox, "--output", str(sandbox / "elsewhere")) == 0
    assert trace(sandbox) == ALL


def test_extra_arguments_go_to_their_stage(sandbox, capsys):
    assert drive(sandbox, "--dry-run", "--", "--seed=1", "top:--batch_size=4") == 0
    warm, base, top = re.split(r"\[\d/3\]", capsys.readouterr().out)[1:]
    assert "--seed=1" not in warm
    assert "--seed=1" in base
    assert "--batch_size=4" not in base
    assert "--batch_size=4" in top
    assert not (sandbox / "out").exists()
    assert drive(sandbox, "--dry-run", "--", "batch_size") == 2
    assert "expected --key=value" in capsys.readouterr().err


def test_length_of_a_stage_can_be_given(sandbox, capsys):
    assert drive(sandbox, "--", "base:--steps=3", "--seed=1") == 0
    assert trace(sandbox) == ["base 1", "base 2", "base 3", *ALL[5:]]
    assert "base/checkpoints/000003/pretrained_model" in capsys.readouterr().out
    assert drive(sandbox, "--dry-run", "--", "--steps=none") == 2
    assert "--steps=none" in capsys.readouterr().err


def test_steps_of_a_stage_that_is_a_module_are_its_own_option(sandbox, capsys):
    assert drive(sandbox, "--dry-run", "--", "warm:--steps=3", "base:--steps=4") == 0
    warm, base, _ = re.split(r"\[\d/3\]", capsys.readouterr().out)[1:]
    assert "--steps=3" in warm
    assert "--steps=4" in base


@pytest.mark.parametrize("word", ["--output_dir=x", "base:--resume=true", "--config_path=x"])
def test_driver_keeps_its_own_options(sandbox, capsys, word):
    assert drive(sandbox, "--dry-run", "--", word) == 2
    assert "the driver sets" in capsys.readouterr().err


def test_missing_dataset_names_the_recorder(sandbox, capsys):
    assert drive(sandbox, "--dataset", str(sandbox / "nothing")) == 2
    assert "multismolvla-record" in capsys.readouterr().err
    assert not (sandbox / "out").exists()


def test_two_drivers_do_not_share_a_folder(sandbox, capsys):
    with process.folder_lock(sandbox / "out"):
        assert drive(sandbox) == 2
    assert "in use" in capsys.readouterr().err


def test_interrupt_ends_the_child_and_leaves_a_resumable_state(sandbox):
    die(sandbox, "base", 3, "hang")
    code = (
        "import sys; from multismolvla_run import pipeline, stages; from pathlib import Path\n"
        "old = stages.program\n"
        f"stages.program = lambda run, stage: [sys.executable, {str(sandbox / 'fake_trainer.py')!r}]"
        " if stage.trains else old(run, stage)\n"
        "pipeline.check_training_options = lambda run: None\n"
        f"sys.exit(pipeline.main(['toy'], configs=Path({str(sandbox / 'configs')!r})))"
    )
    driver = subprocess.Popen([sys.executable, "-c", code], env=os.environ, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 30
    while "base 3" not in trace(sandbox):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    driver.send_signal(signal.SIGTERM)
    _, error = driver.communicate(timeout=30)
    assert driver.returncode == 130
    assert "Start the same command again" in error
    assert drive(sandbox) == 0
    assert trace(sandbox) == ["base 1", "base 2", "base 3", "base 3", "base 4", "base 5", *ALL[5:]]


@pytest.mark.skipif(sys.platform != "linux", reason="needs prctl")
def test_killed_driver_takes_its_child_along(tmp_path):
    marker = tmp_path / "pid"
    child = f"import os, time; open({str(marker)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    code = (
        "import sys; from pathlib import Path; from multismolvla_run.process import run_logged\n"
        f"run_logged([sys.executable, '-c', {child!r}], Path({str(tmp_path / 'log')!r}))"
    )
    driver = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 20
    while not marker.exists() or not marker.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    driver.kill()
    driver.wait()
    pid = int(marker.read_text())
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().split()[2]
        except FileNotFoundError:
            return
        if state == "Z":
            return
        time.sleep(0.05)
    pytest.fail("the child outlived its driver")


def test_unknown_preset_lists_the_known_ones(sandbox, capsys):
    assert pipeline.main(["tyo"], configs=sandbox / "configs") == 2
    error = capsys.readouterr().err
    assert "Did you mean 'toy'" in error
    assert "Available: toy" in error


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stages": {"base": {"steps": 0}}}, "`int` >= 1 - at `$.steps`"),
        ({"stages": {"base": {"args": {"policy.path": "{stage:top}"}}}}, "does not come before it"),
        ({"stages": {"base": {"args": {"policy.path": "{stag}"}}}}, "unknown placeholder {stag}"),
        ({"stages": {"base": {"stesp": 3}}}, "`stesp`"),
        ({"stages": {"warm": {"produces": None}}}, "lacks 'produces'"),
        ({"stages": {"new": {"steps": 3}}}, "`run`"),
        ({"typo": 1}, "`typo`"),
        ({"dataset": None}, "`dataset`"),
        ({"extends": "child"}, "extends itself"),
        ({"extends": "nothing"}, "Unknown preset 'nothing'"),
    ],
)
def test_wrong_presets_are_named(sandbox, change, message):
    child = {"extends": "toy", **change}
    (sandbox / "configs/child.yaml").write_text(yaml.safe_dump(child, sort_keys=False))
    with pytest.raises(presets.PresetError) as error:
        presets.load_preset("child", sandbox / "configs")
    assert message in str(error.value)


def test_extends_merges_key_by_key(sandbox):
    child = {"extends": "toy", "stages": {"base": {"steps": 9}, "top": {"args": {"flag": None}}}}
    (sandbox / "configs/child.yaml").write_text(yaml.safe_dump(child, sort_keys=False))
    preset = presets.load_preset("child", sandbox / "configs")
    assert [s.name for s in preset.stages] == ["warm", "base", "top"]
    assert preset.stage("base").steps == 9
    assert preset.stage("top").args == {
        "dataset.root": "{dataset}",
        "save_freq": 2,
        "policy.path": "{stage:base}",
    }


@pytest.mark.parametrize("name", presets.available_presets(REPO / "configs"))
def test_shipped_presets_can_be_planned(name, tmp_path, capsys):
    assert (
        pipeline.main([name, "--dry-run", "--output", str(tmp_path / "out")], configs=REPO / "configs") == 0
    )
    first_line = (REPO / "configs" / f"{name}.yaml").read_text().splitlines()[0]
    assert first_line == f"# python train.py {name}"
    assert "lerobot-train" in capsys.readouterr().out


def test_training_waits_passively_with_a_thread_per_core_unless_told_otherwise(sandbox, monkeypatch, capsys):
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda pid: {0, 1, 2})
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert drive(sandbox, "--until=warm", "--dry-run") == 0
    assert "OMP_NUM_THREADS=3 MKL_NUM_THREADS=3 OMP_WAIT_POLICY=PASSIVE" in capsys.readouterr().out
    assert drive(sandbox, "--until=warm") == 0
    assert "OMP_NUM_THREADS=3 MKL_NUM_THREADS=3 OMP_WAIT_POLICY=PASSIVE" in capsys.readouterr().out
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert drive(sandbox, "--until=base") == 0
    assert "OMP_NUM_THREADS" not in capsys.readouterr().out
    assert threads.training_threads(1)["OMP_NUM_THREADS"] == "1"
    assert presets.load_preset("mini_smoke", REPO / "configs").threads == 2


def test_progress_in_a_log_is_a_line_per_state(capsys):
    progress = process.Progress("base", 100, 40)
    progress.feed("Training:  50%|#####     | 30/60 [00:10<00:10, 3.0step/s]INFO step:40 loss:0.25 lr:1e-3")
    assert progress.step == 70
    progress.close()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("base: step 40/100")
    assert lines[-1].startswith("base: step 70/100")
    assert "loss=0.25" in lines[-1]
