"""The sensor diagnosis: every LeRobot policy that plans from one observation, each modality alone."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from multismolvla_eval.config import EvalConfig
from multismolvla_eval.offline import diagnose as diagnosis
from multismolvla_eval.offline.diagnose import DiagnosisConfig, arms_for, diagnose, diagnose_first
from multismolvla_eval.policies.features import streams_of
from multismolvla_eval.records.store import ResultsError

RGB, DEPTH = "observation.images.image", "observation.images.image_depth"


def test_streams_of_a_foreign_policy_follow_the_keys_endings():
    config = SimpleNamespace(image_features=[RGB, DEPTH, "observation.images.image2"])
    streams = streams_of(config)
    assert streams == {"rgb": {RGB: None, "observation.images.image2": None}, "depth": {DEPTH: None}}
    assert [a.name for a in arms_for(streams)] == [
        "true", "zeroed", "shuffled", "rgb zeroed", "depth zeroed", "rgb shuffled", "depth shuffled",
    ]  # fmt: skip
    assert len(arms_for({"rgb": {RGB: None}})) == 3


class Looks:
    """A policy that reads its action off the RGB picture's first column and does not care about depth."""

    def __init__(self) -> None:
        self.config = SimpleNamespace(
            type="act", image_features={RGB: None, DEPTH: None}, input_features={RGB: None, DEPTH: None},
            action_delta_indices=[0, 1], n_action_steps=2, n_obs_steps=1,
        )  # fmt: skip

    def predict_action_chunk(self, batch):
        return batch[RGB].mean((1, 2, 3))[:, None, None].expand(-1, 2, 3)


def test_a_modality_that_the_policy_does_not_use_shows(tmp_path, monkeypatch):
    from multismolvla_eval.offline import action_error as gate

    light = torch.rand(24, generator=torch.Generator().manual_seed(0))
    frames = gate.Frames(
        {RGB: light[:, None, None, None].expand(-1, 3, 4, 4), DEPTH: torch.rand(24, 1, 4, 4)}, ["t"] * 24,
        light[:, None, None].expand(-1, 2, 3) + 0.01, torch.zeros(24, 2, dtype=torch.bool), torch.arange(24) // 8,
    )  # fmt: skip
    monkeypatch.setattr(gate, "open_dataset", lambda options: SimpleNamespace(meta=None))
    monkeypatch.setattr(gate, "load_policy", lambda options, meta: (Looks(), lambda batch: batch))
    monkeypatch.setattr(gate, "load_frames", lambda *arguments: frames)
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / "info.json").write_text("{}")
    checkpoint = tmp_path / "policy"
    checkpoint.mkdir()
    (checkpoint / "config.json").write_text("{}")
    cfg = DiagnosisConfig(
        [f"looks={checkpoint}", "zero=builtin:zero"],
        tmp_path,
        [3],
        tmp_path / "run",
        frames=24,
        modality_frames=24,
    )
    diagnose(cfg)
    stored = json.loads((cfg.output / "diagnosis.json").read_text())
    arms = stored["policies"]["looks"]["arms"]
    for control in ("zeroed", "shuffled", "rgb zeroed", "rgb shuffled"):
        assert arms[control]["difference_low"] > 0, control
    for control in ("depth zeroed", "depth shuffled"):
        assert arms[control]["difference"] == 0
        assert arms[control]["n"] == 24
    assert np.isclose(arms["true"]["error"], 0.01, atol=1e-6)
    assert stored["policies"]["zero"]["left_out"] == "it looks at no picture"
    assert stored["held_out"] is True
    assert (cfg.output / "diagnosis.png").read_bytes().startswith(b"\x89PNG")


def test_a_policy_with_other_names_for_its_cameras_and_a_plugin_is_measured(tmp_path, monkeypatch):
    from tiny_dataset import write_dataset
    from tiny_policies import save_act

    (tmp_path / "some_plugin.py").write_text("loaded = True")
    monkeypatch.syspath_prepend(tmp_path)
    act = save_act(tmp_path / "act", ("top", "image2"))
    cfg = DiagnosisConfig(
        [f"act={act}"], write_dataset(tmp_path / "data"), None, tmp_path / "run", frames=8, modality_frames=4, batch_size=4,
        plugins=["some_plugin"], rename_map={"act": {RGB: "observation.images.top"}},
    )  # fmt: skip
    found = diagnose(cfg)["policies"]["act"]
    assert "some_plugin" in sys.modules
    assert found["modalities"] == ["rgb"]
    assert found["arms"]["zeroed"]["n"] == 8
    config = EvalConfig(
        cfg.policies, diagnose=cfg.dataset, output=cfg.output, plugins=cfg.plugins, rename_map=cfg.rename_map
    )
    monkeypatch.setattr(diagnosis.subprocess, "run", lambda *a, **k: pytest.fail("it is there already"))
    diagnose_first(config)
    (Path(act) / "config.json").write_text((Path(act) / "config.json").read_text() + "\n")  # trained further

    def measure(command, check):
        given = dict(c[2:].split("=", 1) for c in command if c.startswith("--"))
        assert json.loads(given["rename_map"]) == cfg.rename_map
        assert json.loads(given["plugins"]) == ["some_plugin"]
        return SimpleNamespace(returncode=1)

    monkeypatch.setattr(diagnosis.subprocess, "run", measure)
    with pytest.raises(RuntimeError, match="diagnosis on .* failed"):
        diagnose_first(config)
    cfg.rename_map = {}
    with pytest.raises(ValueError, match=r"(?i)feature"):
        diagnose(cfg)


def test_without_a_dataset_nothing_is_diagnosed_and_nothing_said_to_be_written(tmp_path, capsys):
    given = [
        "--policies=[zero=builtin:zero]",
        f"--dataset={tmp_path / 'data'}",
        f"--output={tmp_path / 'run'}",
    ]
    assert diagnosis.main(given) == 2
    assert "data is no LeRobotDataset" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    (tmp_path / "data" / "meta").mkdir(parents=True)
    (tmp_path / "data" / "meta" / "info.json").write_text("{}")
    assert diagnosis.main(given) == 0
    text = capsys.readouterr().out
    assert f"written: {tmp_path / 'run' / 'diagnosis.json'}\n" in text


def test_the_runner_diagnoses_once_and_stops_where_that_fails(tmp_path, monkeypatch):
    commands = []

    def run(command, check):
        commands.append(command)
        content = {
            "schema": diagnosis.SCHEMA, "remark": "", "held_out": True, "dataset": "data", "episodes": [1], "rename_map": {},
            "policies": {"p": {"path": "builtin:zero"}},
        }  # fmt: skip
        (tmp_path / "diagnosis.json").write_text(json.dumps(content))
        return SimpleNamespace(returncode=len(commands) - 1)

    monkeypatch.setattr(diagnosis.subprocess, "run", run)
    config = EvalConfig(["p=builtin:zero"], diagnose=Path("data"), diagnose_episodes=[1], output=tmp_path)
    diagnose_first(config)
    diagnose_first(config)
    assert len(commands) == 1
    assert '--policies=["p=builtin:zero"]' in commands[0]
    assert "--episodes=[1]" in commands[0]
    config.diagnose_episodes = [2]
    with pytest.raises(RuntimeError, match="Leave --diagnose out"):
        diagnose_first(config)
    for text, message in (("{half", "is not valid JSON"), ("{}", "is not of the format version 1")):
        (tmp_path / "diagnosis.json").write_text(text)
        with pytest.raises(ResultsError, match=rf"diagnosis.json {message}.*Delete it"):
            diagnose_first(config)
