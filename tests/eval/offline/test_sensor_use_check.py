"""The sensor use of a run's policies: each modality alone, and once per checkpoint."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
import torch

from multismolvla.system.files import write_json
from multismolvla_eval.analysis.diagnosis import FILE, Diagnosis, SensorUse, stored_diagnosis
from multismolvla_eval.config import EvalConfig
from multismolvla_eval.offline import sensor_use, sensor_use_check
from multismolvla_eval.offline.sensor_use import Frames, SensorUseOptions
from multismolvla_eval.offline.sensor_use_check import check, check_first, main
from multismolvla_eval.records.store import ResultsError

RGB, DEPTH = "observation.images.image", "observation.images.image_depth"


class Looks:
    """A policy that reads its action off the RGB picture's first column and does not care about depth."""

    def __init__(self) -> None:
        self.config = SimpleNamespace(
            type="act", image_features={RGB: None, DEPTH: None}, input_features={RGB: None, DEPTH: None},
            action_delta_indices=[0, 1], n_action_steps=2, n_obs_steps=1, device="cpu",
        )  # fmt: skip

    def reset(self) -> None:
        pass

    def predict_action_chunk(self, batch):
        return batch[RGB].mean((1, 2, 3))[:, None, None].expand(-1, 2, 3)


def test_a_modality_that_the_policy_does_not_use_shows(tmp_path, monkeypatch):
    light = torch.rand(24, generator=torch.Generator().manual_seed(0))
    frames = Frames(
        {RGB: light[:, None, None, None].expand(-1, 3, 4, 4), DEPTH: torch.rand(24, 1, 4, 4)},
        ["t"] * 24,
        light[:, None, None].expand(-1, 2, 3) + 0.01,
        torch.zeros(24, 2, dtype=torch.bool),
        torch.arange(24) // 8,
    )
    looks = Looks()
    monkeypatch.setattr(sensor_use, "stored_config", lambda path, options: looks.config)
    monkeypatch.setattr(sensor_use, "open_dataset", lambda *arguments: SimpleNamespace(meta=None))
    monkeypatch.setattr(sensor_use, "load_as_trained", lambda *arguments: (looks, lambda batch: batch))
    monkeypatch.setattr(sensor_use, "load_frames", lambda *arguments: frames)
    checkpoint = tmp_path / "policy"
    checkpoint.mkdir()
    (checkpoint / "config.json").write_text("{}")
    policies = [f"looks={checkpoint}", "zero=builtin:zero"]
    options = SensorUseOptions(policies, tmp_path, [3], tmp_path / "run", frames=24, modality_frames=24)
    check(options)
    stored = stored_diagnosis(options.output)
    controls = stored.policies["looks"].controls
    for control in ("zeroed", "shuffled", "rgb zeroed", "rgb shuffled"):
        assert controls[control].change.low > 0, control
    for control in ("depth zeroed", "depth shuffled"):
        assert controls[control].change.difference == 0
        assert controls[control].n == 24
    assert controls["true"].error == pytest.approx(0.01, abs=1e-6)
    assert stored.policies["zero"].left_out == "it looks at no picture"
    assert stored.held_out is True


def test_a_policy_with_other_names_for_its_cameras_and_a_plugin_is_measured(tmp_path, monkeypatch):
    from tiny_dataset import write_dataset
    from tiny_policies import save_act

    (tmp_path / "some_plugin.py").write_text("loaded = True")
    monkeypatch.syspath_prepend(tmp_path)
    act = save_act(tmp_path / "act", ("top", "image2"))
    options = SensorUseOptions(
        [f"act={act}"], write_dataset(tmp_path / "data"), None, tmp_path / "run", frames=8, modality_frames=4,
        batch_size=4, plugins=["some_plugin"], rename_map={"act": {RGB: "observation.images.top"}},
    )  # fmt: skip
    found = check(options).policies["act"]
    assert "some_plugin" in sys.modules
    assert found.modalities == ["rgb"]
    assert found.controls["zeroed"].n == 8
    same = {"plugins": options.plugins, "rename_map": options.rename_map, "output": options.output}
    same |= {"estimator_sources": {"depth": "a folder"}, "missing_estimator": "absent"}
    config = EvalConfig(options.policies, diagnose=options.dataset, **same)
    monkeypatch.setattr(
        sensor_use_check.subprocess, "run", lambda *a, **k: pytest.fail("it is there already")
    )
    check_first(config)
    (Path(act) / "config.json").write_text((Path(act) / "config.json").read_text() + "\n")  # trained further

    def measure(command, check):
        given = dict(c[2:].split("=", 1) for c in command if c.startswith("--"))
        assert json.loads(given["rename_map"]) == options.rename_map
        assert json.loads(given["plugins"]) == ["some_plugin"]
        assert json.loads(given["estimator_sources"]) == {"depth": "a folder"}
        assert given["missing_estimator"] == "absent"
        return SimpleNamespace(returncode=1)

    monkeypatch.setattr(sensor_use_check.subprocess, "run", measure)
    with pytest.raises(RuntimeError, match="--diagnose"):
        check_first(config)
    options.rename_map = {}
    with pytest.raises(ValueError, match=r"(?i)feature"):
        check(options)


def test_policies_without_pictures_need_no_dataset(tmp_path, capsys):
    given = [
        "--policies=[zero=builtin:zero]",
        f"--dataset={tmp_path / 'data'}",
        f"--output={tmp_path / 'run'}",
    ]
    assert main(given) == 0
    text = capsys.readouterr().out
    assert "zero: left out, it looks at no picture" in text
    assert f"written: {tmp_path / 'run' / FILE}\n" in text


def test_the_runner_measures_once_and_stops_where_that_fails(tmp_path, monkeypatch):
    commands = []

    def run(command, check):
        commands.append(command)
        use = SensorUse("builtin:zero", "builtin:zero")
        content = Diagnosis(
            dataset="data", episodes=[1], held_out=True, frames=8, modality_frames=4, seed=0, rename_map={},
            policies={"p": use}, command="",
        )  # fmt: skip
        write_json(tmp_path / FILE, msgspec.to_builtins(content))
        return SimpleNamespace(returncode=len(commands) - 1)

    monkeypatch.setattr(sensor_use_check.subprocess, "run", run)
    config = EvalConfig(["p=builtin:zero"], diagnose=Path("data"), diagnose_episodes=[1], output=tmp_path)
    check_first(config)
    check_first(config)
    assert len(commands) == 1
    assert '--policies=["p=builtin:zero"]' in commands[0]
    assert "--episodes=[1]" in commands[0]
    assert "--strict=false" in commands[0]
    config.diagnose_episodes = [2]
    with pytest.raises(RuntimeError, match="--diagnose"):
        check_first(config)
    for text in ("{half", "{}"):
        (tmp_path / FILE).write_text(text)
        with pytest.raises(ResultsError, match=rf"{FILE} cannot be read.*Delete it"):
            check_first(config)
