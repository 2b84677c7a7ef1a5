"""The card tells what is in a data set, in which units, where it comes from and under which terms."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from multismolvla.system.libero_assets import AssetIdentity
from multismolvla_data.formats.card import CARD, write_card
from multismolvla_data.formats.dataset_writer import features
from multismolvla_data.formats.metadata import Annotation, DatasetMetadata, Start, simulated


def card(root: Path, metadata: DatasetMetadata, declared: dict[str, object]) -> tuple[dict[str, object], str]:
    """Front matter and text of the card that a data set gets with its metadata."""
    (root / "meta").mkdir(parents=True)
    info = {
        "codebase_version": "v3.0",
        "fps": 20,
        "total_episodes": 2,
        "total_frames": 31,
        "robot_type": "panda",
        "features": declared,
    }
    (root / "meta/info.json").write_text(json.dumps(info))
    write_card(root, metadata)
    _, front, text = (root / CARD).read_text().split("---\n", 2)
    return yaml.safe_load(front), text


def test_a_simulated_data_set(tmp_path):
    metadata = simulated("multismolvla_mini", "fast")
    metadata.tasks = {"0": "put the cube in the basket"}
    metadata.identities = {"multismolvla-record": {"noise": 0.5, "seed": 7}}
    metadata.starts, metadata.failed_starts = {"0": [Start(3, 0), Start(5, 0)]}, {"0": [Start(4, 0)]}
    front, text = card(tmp_path, metadata, features("multismolvla_mini", 64))
    assert front["license"] == "apache-2.0"
    assert {"LeRobot", "multismolvla"} <= set(front["tags"])
    for line in (
        "2 episodes, 31 frames at 20 per second, robot `panda`",
        "0. put the cube in the basket",
        "| `observation.images.image2_seg` | seg | 64x64 | image | class ids | sensor |",
        "by id: 0 background, 1 robot",
        "`action`: dx, dy, dz, drx, dry, drz, gripper (in -1 to 1; dx, dy, dz: 1 = 0.05 m",
        "fingers in metres)",
        "disturbance of actions, seed: 0.5 times the recorder's own, 7",
        "task 0: 2 episodes from the states 3, 5; 1 more starts failed",
        "render quality: fast",
    ):
        assert line in text, line


@pytest.mark.parametrize("standins", [True, False, None])
def test_stand_ins_for_liberos_objects_are_told(standins, tmp_path):
    assets = AssetIdentity("0123456789abcdef", standins, ())
    _, text = card(tmp_path, simulated("libero_object", "fast", assets), {})
    assert ("visual stand-ins" in text) == bool(standins)
    assert "https://github.com/Lifelong-Robot-Learning/LIBERO" in text


@pytest.mark.parametrize("suite", ["libero_object", None])
def test_terms_are_those_of_scenes_recording_and_estimators(suite, tmp_path):
    metadata = DatasetMetadata(suite=suite, provenance={"rgb": "sensor"})
    recipe = {"model": "depth-anything/Depth-Anything-V2-Small-hf"}
    metadata.annotation = Annotation({}, {"depth": recipe}, {}, {}, [])
    depth = {
        "dtype": "image",
        "shape": (48, 64, 1),
        "names": None,
        "info": {
            "is_depth_map": True,
            "modality": "depth",
            "provenance": "derived",
            "meaning": "affine-invariant depth on a nominal scale, not metres",
        },
    }
    front, text = card(tmp_path / "own", metadata, {"observation.images.front_depth": depth})
    assert front["license"] == "other"
    assert (
        "| depth | 64x48 | image | affine-invariant depth on a nominal scale, not metres | estimated from RGB"
        in text
    )
    assert ("assets have their own terms" if suite else "That of the recording") in text
    assert "inherit its terms: Apache-2.0" in text
