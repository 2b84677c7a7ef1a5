"""Annotation: every modality and its ids in a data set that LeRobot reads, whatever interrupts it."""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from tiny_dataset import write_dataset

from multismolvla.modalities import default_view_map, token_key
from multismolvla.system.command import entry_point
from multismolvla_data.annotate import command as annotate_command
from multismolvla_data.annotate.annotator import Annotator
from multismolvla_data.annotate.config import AnnotateConfig
from multismolvla_data.annotate.contact_sheet import SHEET
from multismolvla_data.annotate.estimate import plan_text
from multismolvla_data.annotate.job import annotate
from multismolvla_data.annotate.plan import make_plan
from multismolvla_data.annotate.setup import COMMAND, AnnotationSetup
from multismolvla_data.annotate.shard import EpisodeAnnotator, added_features
from multismolvla_data.annotate.source import SourceDataset
from multismolvla_data.annotate.verify import FinishedDataset, VerificationError, verify
from multismolvla_data.annotate.work import WorkShare
from multismolvla_data.formats.metadata import (
    DatasetMetadata,
    JoinedPart,
    Verification,
    read_metadata,
    write_metadata,
)
from multismolvla_data.formats.workspace import Workspace, WorkspaceError, is_disk_full

REPO = Path(__file__).resolve().parents[3]
FRONT, WRIST = "observation.images.front", "observation.images.wrist"
#: The cheapest annotation that still estimates, keeps a sensor, stores and tokenizes.
CHEAP: dict[str, Any] = {
    "modalities": ["depth"],
    "tokenizers": "patch",
    "domains": {"depth": "tok_depth@64"},
    "image_size": 64,
}


@entry_point("multismolvla-annotate")
def run(cfg: AnnotateConfig) -> int:
    """As the command, given its options."""
    annotate(cfg)
    return 0


def config(recorded: Path, networks: dict[str, Any], output: Path, **options: Any) -> AnnotateConfig:
    return AnnotateConfig(**{"dataset": str(recorded), "output": output} | networks | options)


def cheap(recorded: Path, networks: dict[str, Any], output: Path, **options: Any) -> AnnotateConfig:
    return config(recorded, networks, output, **CHEAP | options)


def opened(root: Path) -> LeRobotDataset:
    return LeRobotDataset("tests/annotated", root=root, depth_output_unit="m", return_uint8=True)


def annotator_of(setup: AnnotationSetup, estimators: dict[str, Any]) -> Annotator:
    return Annotator(setup.plan, estimators, setup.id_maker(), setup.cfg.half_turns)


def episode_annotator(setup: AnnotationSetup) -> EpisodeAnnotator:
    estimators = setup.load_estimators()
    added = added_features(setup, {m: e.recipe for m, e in estimators.items()})
    return EpisodeAnnotator(setup, annotator_of(setup, estimators), added, rank=0)


def features_of(root: Path) -> dict[str, Any]:
    return json.loads((root / "meta/info.json").read_text())["features"]


def content_of(root: Path) -> list[dict[str, Any]]:
    """All rows, pictures as their bytes, whatever files they are in."""
    files = sorted((root / "data").glob("*/*.parquet"))
    return [row for file in files for row in pq.read_table(file).to_pylist()]


@pytest.fixture(scope="module")
def annotated(recorded, networks, tmp_path_factory):
    cfg = config(recorded, networks, tmp_path_factory.mktemp("annotated") / "so101_all", episodes=[0, 1])
    return cfg, annotate(cfg)


@pytest.fixture(scope="module")
def cheaply(recorded, networks, tmp_path_factory):
    cfg = cheap(recorded, networks, tmp_path_factory.mktemp("cheap") / "so101_depth")
    return cfg, annotate(cfg)


# -- what comes out
# ------------------------------------------------------------------------------------------------


def test_everything_recorded_stays_what_it_was(recorded, cheaply):
    old, new = opened(recorded), opened(cheaply[1])
    assert (len(new), new.num_episodes, new.fps) == (len(old), old.num_episodes, old.fps)
    for i in (0, 5, 6, 21):
        before, after = old[i], new[i]
        assert all(torch.equal(before[k], after[k]) for k in before if k != "task")
        assert before["task"] == after["task"]
    for file in sorted((recorded / "videos").rglob("*.mp4")):
        assert file.read_bytes() == (cheaply[1] / file.relative_to(recorded)).read_bytes()
    statistics = [json.loads((r / "meta/stats.json").read_text()) for r in (recorded, cheaply[1])]
    assert {k: statistics[1][k] for k in statistics[0]} == statistics[0]


def test_what_a_view_lacks_is_there_in_the_units_of_its_modality(annotated):
    item = opened(annotated[1])[8]
    assert item[f"{WRIST}_depth"].shape == (1, 48, 64)
    assert 0.3 <= item[f"{WRIST}_depth"].min() < item[f"{WRIST}_depth"].max() <= 3.0
    classes = (item[f"{FRONT}_seg"] * 255).round().long()
    assert 1 <= classes[0].min() <= classes[0].max() <= 133
    assert not classes[1:].any()
    thermal = item[f"{WRIST}_thermal"]
    assert torch.equal(thermal[0], thermal[1])
    assert thermal.max() > thermal.min()


def test_each_stream_says_where_it_comes_from(annotated):
    features = features_of(annotated[1])
    assert features[f"{FRONT}_depth"]["info"]["provenance"] == "sensor"
    assert features[f"{WRIST}_depth"]["info"]["provenance"] == "derived"
    assert features[f"{WRIST}_depth"]["info"]["estimator"]["fingerprint"]
    assert "not metres" in features[f"{WRIST}_depth"]["info"]["meaning"]
    metadata = read_metadata(annotated[1])
    # one derived view is enough: a modality of which a part dies with its RGB is not sensor redundancy
    assert metadata.provenance == {
        "rgb": "sensor",
        "depth": "derived",
        "seg": "derived",
        "thermal": "derived",
    }
    assert metadata.annotation.streams[f"{FRONT}_depth"].valid_share == pytest.approx(40 / 48, abs=1e-6)
    stored = (annotated[1] / "meta/multismolvla.json").read_text()
    assert str(annotated[0].depth_model) not in stored  # no machine's paths


def test_unmeasured_patches_of_the_depth_camera_are_absent_tokens(annotated):
    ids = opened(annotated[1])[0]["observation.tokens.front.depth"].reshape(14, 14)
    assert (ids[:2] == -1).all()  # 8 of 48 pixel rows: two rows of patches and a third of the next
    assert (ids[2:] >= 0).all()


def test_the_finished_dataset_was_verified_and_a_wrong_id_is_found(annotated, tmp_path):
    verified = read_metadata(annotated[1]).annotation.verified
    assert verified == Verification(frames=4, ids=4 * 2 * (196 + 196 + 272), mismatches=0)
    broken = tmp_path / "broken"
    shutil.copytree(annotated[1], broken)
    for file in (broken / "data").glob("*/*.parquet"):
        table = pq.read_table(file)
        place = table.schema.get_field_index("observation.tokens.wrist.seg")
        shifted = [[(i + 1) % 4096 for i in ids] for ids in table.column(place).to_pylist()]
        field = table.schema.field(place)
        import pyarrow as pa

        pq.write_table(table.set_column(place, field, pa.array(shifted, field.type)), file)
    setup = AnnotationSetup.of(annotated[0])
    with pytest.raises(VerificationError, match=r"observation.tokens.wrist.seg"):
        verify(FinishedDataset(setup, annotator_of(setup, {}), broken))


def test_ids_have_no_statistics_and_the_policy_takes_them(annotated):
    from lerobot.configs.types import FeatureType
    from lerobot.utils.feature_utils import dataset_to_policy_features

    from lerobot_policy_multismolvla.configuration_multismolvla import MultiSmolVLAConfig

    cfg, root = annotated
    features = features_of(root)
    ids = [k for k in features if k.startswith("observation.tokens.")]
    assert len(ids) == 6
    assert all(features[k]["dtype"] == "int16" for k in ids)
    assert not set(ids) & set(json.loads((root / "meta/stats.json").read_text()))
    per_episode = pq.read_schema(next((root / "meta/episodes").glob("*/*.parquet"))).names
    assert not [n for n in per_episode if n.startswith("stats/observation.tokens")]
    options = {
        "views": read_metadata(root).views,
        "domains": {"rgb": "rgb@224"} | cfg.domains,
        "tokenizers": "official",
        "tokenizer_sources": cfg.tokenizer_sources,
        "imagebind": cfg.imagebind,
        "num_labels": 134,
        "device": "cpu",
        "align_weight": 0.0,  # the teacher would pad these pictures, which the ids were made without
    }
    policy = MultiSmolVLAConfig(input_features=dataset_to_policy_features(features), **options)
    policy.set_dataset_feature_metadata(features)
    policy.validate_features()
    assert not set(ids) & set(policy.input_features)
    assert policy.input_features[f"{WRIST}_thermal"].type is FeatureType.VISUAL
    with pytest.raises(ValueError, match="square"):
        MultiSmolVLAConfig(**options, square="stretch").set_dataset_feature_metadata(features)


def test_the_policy_options_that_are_told_fit_the_dataset(recorded, networks, tmp_path):
    """Parsed as a command line, they give a policy that takes the ids; one without any of them refuses."""
    import draccus

    from lerobot_policy_multismolvla.configuration_multismolvla import MultiSmolVLAConfig

    unusual = {
        "half_turns": {"front": 1}, "depth_range_m": (0.02, 5.0), "imagebind_rows": "norm",
        "thermal_route": "bridge", "square": "stretch", "seg_unknown": "void", "num_labels": 140,
    }  # fmt: skip
    setup = AnnotationSetup.of(config(recorded, networks, tmp_path / "out", **unusual))
    features = setup.source.features | added_features(setup, {})
    told = shlex.split(" ".join(setup.policy_arguments()))
    words = [w.replace("--policy.", "--") for w in told if w.startswith("--policy.")]
    given = draccus.parse(MultiSmolVLAConfig, args=[*words, "--device=cpu"])
    for name, value in unusual.items():
        assert getattr(given, name) == value
    for name in ("tokenizer_sources", "imagebind"):
        assert getattr(given, name) == networks[name]
    given.set_dataset_feature_metadata(features)
    for name in ("half_turns", "depth_range_m", "imagebind_rows", "thermal_route", "square", "seg_unknown"):
        less = [w for w in words if not w.startswith(f"--{name}=")]
        with pytest.raises(ValueError, match=name):
            draccus.parse(MultiSmolVLAConfig, args=[*less, "--device=cpu"]).set_dataset_feature_metadata(
                features
            )
    stored = setup.annotation({}).policy_options
    assert stored["half_turns"] == {"front": 1}
    assert not {"tokenizer_sources", "imagebind"} & set(stored)  # folders of this machine


def test_defaults_that_are_not_told_are_the_policys():
    from lerobot_policy_multismolvla.configuration_multismolvla import MultiSmolVLAConfig

    policy, own = MultiSmolVLAConfig(device="cpu"), AnnotateConfig()
    for name in (
        "half_turns", "depth_range_m", "tokenizer_sources", "seg_labels", "seg_unknown", "bridge_map",
        "imagebind", "square",
    ):  # fmt: skip
        assert getattr(own, name) == getattr(policy, name)


def test_what_joined_datasets_tell_about_themselves_comes_along(record, networks, tmp_path):
    """LeRobot's merge keeps none of it."""
    from lerobot.datasets.dataset_tools import merge_datasets

    suites = [record(tmp_path / name, depth="image", episodes=1) for name in ("spatial", "goal")]
    for suite in suites:
        write_metadata(suite, DatasetMetadata(suite=suite.name, render_quality="fast", thermal="simulated"))
        (suite / "meta/replay_report.json").write_text(suite.name)
    merge_datasets([opened(s) for s in suites], output_repo_id="tests/all", output_dir=tmp_path / "all")
    with pytest.raises(ValueError, match="in the order of the merge"):
        AnnotationSetup.of(cheap(tmp_path / "all", networks, tmp_path / "out", joined_from=suites[:1]))
    with pytest.raises(FileNotFoundError, match=r"meta.multismolvla\.json is missing"):
        AnnotationSetup.of(
            cheap(tmp_path / "all", networks, tmp_path / "out", joined_from=[tmp_path / "all"])
        )
    root = annotate(cheap(tmp_path / "all", networks, tmp_path / "out", joined_from=suites))
    metadata = read_metadata(root)
    assert (metadata.render_quality, metadata.suite) == ("fast", None)
    assert metadata.joined_from == [JoinedPart("spatial", 1), JoinedPart("goal", 1)]
    for suite in suites:
        carried = root / "meta/joined_from" / suite.name
        for name in ("multismolvla.json", "replay_report.json"):
            assert (carried / name).read_bytes() == (suite / "meta" / name).read_bytes()


def test_a_second_run_finds_it_made_and_other_options_are_refused(annotated, tmp_path):
    cfg, root = annotated
    before = (root / "meta/info.json").stat().st_mtime_ns
    assert annotate(cfg) == root
    assert (root / "meta/info.json").stat().st_mtime_ns == before
    with pytest.raises(WorkspaceError, match=r"thermal_steps \(2, .*3\)"):
        annotate(AnnotateConfig(**vars(cfg) | {"thermal_steps": 3}))
    (tmp_path / "file").write_text("mine")
    with pytest.raises(WorkspaceError, match="no meta/multismolvla.json"):
        annotate(AnnotateConfig(**vars(cfg) | {"output": tmp_path}))


def test_after_a_picture_that_shows_nothing_the_finished_episodes_are_kept(tmp_path, monkeypatch):
    key, ids = default_view_map()["image"]["thermal"], token_key("image", "thermal")

    def blacken(episode, step, made):
        if (episode, step) == (1, 3):
            made[key] = np.zeros_like(made[key])

    source = write_dataset(tmp_path / "source", spoil=blacken)
    options = {
        "dataset": str(source), "output": tmp_path / "out", "modalities": ["thermal"], "tokenizers": "patch",
        "domains": {"thermal": "tok_thermal@64"}, "image_size": 64, "batch_size": 4, "device": "cpu",
    }  # fmt: skip
    with pytest.raises(ValueError, match=f"{key} is zero in episode 1, frame 3.*--health=act"):
        annotate(AnnotateConfig(**options))
    written, write = [], EpisodeAnnotator.write

    def spy(self, episode, *rest):
        written.append(episode)
        write(self, episode, *rest)

    monkeypatch.setattr(EpisodeAnnotator, "write", spy)
    made = opened(annotate(AnnotateConfig(**options, health="act")))  # verifies the ids once more
    assert written == [1]
    assert [i for i in range(len(made)) if (made[i][ids] == -1).any()] == [12 + 3]


def test_the_contact_sheet_shows_every_stream(annotated):
    from PIL import Image

    sheet = np.asarray(Image.open(annotated[1] / SHEET))
    assert sheet.shape[1] == 4 * 204
    columns = [sheet[50:150, 204 * c : 200 + 204 * c] for c in range(4)]
    assert all(len(np.unique(c.reshape(-1, 3), axis=0)) > 1 for c in (columns[0], columns[1], columns[3]))


@pytest.mark.parametrize("kind", ["cheaply", "ids"])
def test_lerobots_tools_delete_split_and_merge_it(kind, cheaply, recorded, networks, tmp_path, request):
    """Statistics of pictures that are gone would make them fail."""
    from lerobot.datasets.dataset_tools import delete_episodes, merge_datasets, split_dataset

    root = cheaply[1]
    if kind == "ids":
        root = annotate(cheap(recorded, networks, tmp_path / "ids", keep_pictures=False))
    whole = opened(root)
    key = token_key("front", "depth")
    rest = delete_episodes(opened(root), [1], tmp_path / "rest", "tests/rest")
    assert torch.equal(rest[6][key], whole[11][key])  # episodes have 6, 5, 6, 5 frames
    halves = split_dataset(opened(root), {"a": [0, 1], "b": [2, 3]}, tmp_path / "halves")
    assert torch.equal(halves["b"][0][key], whole[11][key])
    joined = merge_datasets(list(halves.values()), "tests/joined", tmp_path / "joined")
    assert len(joined) == len(whole)
    assert all(torch.equal(joined[i][key], whole[i][key]) for i in (0, 10, 11, 21))
    assert torch.equal(joined[3]["action"], whole[3]["action"])


def test_ids_alone_are_the_same_ids(recorded, networks, annotated, tmp_path):
    cfg = config(recorded, networks, tmp_path / "ids", keep_pictures=False, episodes=[1])
    root = annotate(cfg)
    features = features_of(root)
    assert not {f"{WRIST}_depth", f"{FRONT}_depth"} & set(features)
    assert not (root / "videos" / f"{FRONT}_depth").exists()
    assert FRONT in features
    size = sum(2 * f["shape"][0] for k, f in features.items() if k.startswith("observation.tokens.front"))
    assert size <= 2000  # bytes per view and frame
    ids, whole = opened(root), opened(annotated[1])
    for key in (k for k in features if k.startswith("observation.tokens.")):
        assert all(torch.equal(ids[t][key], whole[6 + t][key]) for t in range(len(ids)))


# -- choosing
# -----------------------------------------------------------------------------------------------------


def test_a_subset_of_episodes_keeps_its_frames(recorded, networks, tmp_path):
    root = annotate(cheap(recorded, networks, tmp_path / "subset", episodes=[3, 0]))
    old, new = opened(recorded), opened(root)
    assert len(new) == 11
    for i, j in ((0, 17), (4, 21), (5, 0), (10, 5)):
        assert torch.equal(new[i][FRONT], old[j][FRONT])
        assert torch.equal(new[i]["action"], old[j]["action"])
        assert new[i]["task"] == old[j]["task"]
    assert [int(new[i]["index"]) for i in (0, 10)] == [0, 10]
    assert read_metadata(root).source_episodes == [3, 0]


def test_a_camera_with_another_unit_is_stored_anew_in_millimetres(recorded, networks, tmp_path):
    root = annotate(
        cheap(recorded, networks, tmp_path / "d405", depth_scale_m={"front": 0.0001}, episodes=[0])
    )
    before, after = opened(recorded)[3][f"{FRONT}_depth"], opened(root)[3][f"{FRONT}_depth"]
    assert after[0, 20, 0] == pytest.approx(before[0, 20, 0].item() / 10, abs=5e-4)
    info = features_of(root)[f"{FRONT}_depth"]["info"]
    assert (info["provenance"], info["depth_unit"]) == ("sensor", "mm")
    assert not (root / "videos" / f"{FRONT}_depth").exists()
    ids_alone = annotate(
        cheap(
            recorded,
            networks,
            tmp_path / "d405_ids",
            depth_scale_m={"front": 0.0001},
            episodes=[0],
            keep_pictures=False,
        )
    )
    key = token_key("front", "depth")
    assert torch.equal(opened(ids_alone)[3][key], opened(root)[3][key])
    assert f"{FRONT}_depth" not in features_of(ids_alone)


def test_what_cannot_be_is_refused_before_any_work(recorded, networks, tmp_path):
    features = SourceDataset(str(recorded)).features
    wide = features | {f"{FRONT}_depth": features[f"{FRONT}_depth"] | {"shape": (48, 80, 1)}}
    with pytest.raises(ValueError, match=r"80x48.*64x48.*rs\.align"):
        make_plan(cheap(recorded, networks, tmp_path), wide)
    painted = features | {f"{FRONT}_depth": features[f"{FRONT}_depth"] | {"shape": (48, 64, 3)}}
    with pytest.raises(ValueError, match="drawn in colours"):
        make_plan(cheap(recorded, networks, tmp_path), painted)
    filmed = features | {f"{FRONT}_seg": features[FRONT]}
    with pytest.raises(ValueError, match="class ids in a video"):
        make_plan(config(recorded, networks, tmp_path), filmed)
    with pytest.raises(ValueError, match="--half_turns names 'frnot'"):
        make_plan(cheap(recorded, networks, tmp_path, half_turns={"frnot": 1}), features)
    with pytest.raises(ValueError, match="weight-free"):
        make_plan(cheap(recorded, networks, tmp_path, modalities=["seg"]), features)
    with pytest.raises(ValueError, match="One|one label set"):
        make_plan(config(recorded, networks, tmp_path, seg_labels="libero"), features)
    with pytest.raises(ValueError, match=r"--depth_scale_m names 'wrist'"):
        make_plan(cheap(recorded, networks, tmp_path, depth_scale_m={"wrist": 0.001}), features)
    with pytest.raises(ValueError, match="0 to 3"):
        AnnotationSetup.of(cheap(recorded, networks, tmp_path, episodes=[0, 4]))
    with pytest.raises(FileNotFoundError, match="no meta/info.json"):
        AnnotationSetup.of(cheap(tmp_path, networks, tmp_path))
    with pytest.raises(ValueError, match="leave nothing to add"):
        AnnotateConfig(keep_pictures=False, tokens=False)


def test_dry_run_says_what_it_would_take_and_writes_nothing(recorded, tmp_path, monkeypatch, capsys):
    words = [f"--dataset={recorded}", f"--output={tmp_path}/out"]
    monkeypatch.setattr(sys, "argv", ["multismolvla-annotate", *words, "--dry-run"])
    assert annotate_command.main() == 0
    said = capsys.readouterr().out
    for line in (
        "depth-anything/Depth-Anything-V2-Small-hf: 99 MB (estimated) to download; licence: Apache-2.0",
        "xjh19972/ThermalGen-XL-2: 4.41 GB",
        "EPFL-VILAB/4M_tokenizers_semseg_4k_224-448: 880 MB",
        "nielsr/imagebind-huge",
        "4 episodes, 22 frames",
        "from operation counts, not measured",
        "--policy.views=",
    ):
        assert line in said, said
    assert not list(tmp_path.iterdir())
    cfg = AnnotateConfig(dataset=str(recorded), output=tmp_path / "out")
    assert plan_text(AnnotationSetup.of(cfg)) == said


def test_the_options_name_what_the_rest_of_the_package_names():
    from multismolvla.estimators import depth
    from multismolvla.pretrained import SOURCES
    from multismolvla.tokenizers import recipe
    from multismolvla_data.annotate import config as own

    for name in ("OFFICIAL_LABELS", "NUM_OFFICIAL_LABELS", "TOKENIZER_FAMILIES"):
        assert getattr(own, name) == getattr(recipe, name)
    assert own.RELATIVE_RANGE_M == depth.RELATIVE_RANGE_M
    cfg = AnnotateConfig()
    assert {cfg.depth_model, cfg.seg_model, cfg.thermal_model, cfg.imagebind} <= set(SOURCES)


def test_help_is_light(help_of):
    assert "--keep_pictures" in help_of("multismolvla_data.annotate.command", "torch", "lerobot", "datasets")


def test_a_network_that_is_nowhere_is_named_with_its_licence_and_size(
    recorded, networks, tmp_path, monkeypatch
):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    cfg = cheap(recorded, networks, tmp_path / "out", depth_model="depth-anything/Depth-Anything-V2-Small-hf")
    with pytest.raises(FileNotFoundError, match=r"Licence of depth-anything.*Apache-2.0.*Size: 99 MB"):
        annotate(cfg)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["video", "image"])
def test_the_reader_sees_what_lerobot_sees(kind, recorded, record, tmp_path):
    root = recorded if kind == "video" else record(tmp_path / "images", depth="image", episodes=2)
    source, data = SourceDataset(str(root), workers=2), opened(root)
    keys = [FRONT, f"{FRONT}_depth"]
    pictures = source.pictures(source.table(1), 1, 2, 5, keys)
    for t in range(3):
        item = data[6 + 2 + t]
        assert torch.equal(pictures[FRONT][t], item[FRONT])
        assert torch.equal(pictures[keys[1]][t], item[keys[1]])


def test_pictures_in_the_table_stay_bit_by_bit_and_a_view_turned_over_gets_other_ids(
    record, networks, tmp_path
):
    root = record(tmp_path / "images", depth="image", episodes=1)
    plain = annotate(cheap(root, networks, tmp_path / "plain"))
    turned = annotate(cheap(root, networks, tmp_path / "turned", half_turns={"front": 1}))
    key = f"{FRONT}_depth"
    before, after, over = (content_of(r) for r in (root, plain, turned))
    assert [row[key]["bytes"] for row in after] == [row[key]["bytes"] for row in before]
    upright, flipped = (np.array(r[0]["observation.tokens.front.depth"]).reshape(8, 8) for r in (after, over))
    assert (flipped == upright[::-1, ::-1]).all()  # the square tokens of a turned picture, turned
    assert features_of(turned)["observation.tokens.front.depth"]["info"]["half_turns"] == 1


# -- interruptions
# ---------------------------------------------------------------------------------------------------


def command(cfg: AnnotateConfig) -> list[str]:
    options = {k: v for k, v in vars(cfg).items() if v != getattr(AnnotateConfig, k, None) and v is not None}
    given = [f"--{k}={json.dumps(v) if isinstance(v, dict | list | bool) else v}" for k, v in options.items()]
    return [sys.executable, "-m", "multismolvla_data.annotate.command", *given]


def environment() -> dict[str, str]:
    """As many threads as here: sums of another order differ in the last bit, and so do rounded pixels."""
    return os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads()), "HF_HUB_OFFLINE": "1"}


def documented_launch() -> list[str]:
    """Options of `accelerate launch`, and the module, as the documentation says, for two processes."""
    pattern = r"accelerate launch (.*) --num_processes=8 (--module \S+) --dataset"
    line = re.search(pattern, annotate_command.__doc__)
    assert line.groups() == re.search(pattern, (REPO / "docs/data.md").read_text()).groups()
    return [*line[1].split(), "--num_processes=2", *line[2].split()]


def test_a_process_that_accelerate_started_alone_says_so(recorded, networks, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr(Workspace, "open", interrupted)
    for options in ({}, {"rank": 0, "world_size": 2}):
        with pytest.raises(KeyboardInterrupt), caplog.at_level("INFO", "multismolvla_data"):
            annotate(cheap(recorded, networks, tmp_path / "out", **options))
    alone, one_of_two = caplog.messages
    assert "started this process alone" in alone
    assert "--multi_gpu" in alone
    assert one_of_two == "Process 1 of 2."


def interrupted(*_: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.slow
def test_killed_and_continued_by_two_processes_it_is_the_same_dataset(recorded, networks, cheaply, tmp_path):
    cfg = cheap(recorded, networks, tmp_path / "out", batch_size=4)
    work = tmp_path / ".out.unfinished"
    first = subprocess.Popen(command(cfg), env=environment(), stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not list(work.glob("episodes/0*")) and time.monotonic() < deadline and first.poll() is None:
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.wait()
    kept = sorted(p.name for p in work.glob("episodes/0*"))
    assert kept, first.stderr.read().decode()
    assert len(kept) < 4
    assert not cfg.output.exists()
    launched = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--main_process_port=0",
        *documented_launch(),
    ]
    launched += command(cfg)[3:]
    second = subprocess.run(launched, env=environment(), capture_output=True, text=True, timeout=240)
    assert second.returncode == 0, second.stderr
    assert "annotate 0/2" in second.stderr
    assert "annotate 1/2" in second.stderr
    assert content_of(cfg.output) == content_of(cheaply[1])
    for name in ("info.json", "stats.json"):
        assert (cfg.output / "meta" / name).read_bytes() == (cheaply[1] / "meta" / name).read_bytes()
    assert not work.exists()


def test_a_full_disk_stops_clean_and_the_same_command_continues(
    recorded, networks, cheaply, tmp_path, monkeypatch, capsys
):
    cfg = cheap(recorded, networks, tmp_path / "out")
    real, calls = pq.write_table, []

    def full_at_the_third(table, path, *args, **kwargs):
        calls.extend([path] * ("file-000.parquet" in str(path)))  # not the table of tasks
        if len(calls) == 3:
            Path(path).write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(table, path, *args, **kwargs)

    monkeypatch.setattr(pq, "write_table", full_at_the_third)
    assert run(cfg) == 1
    assert "the disk is full" in capsys.readouterr().err
    assert sorted(p.name for p in (tmp_path / ".out.unfinished/episodes").iterdir()) == ["000000", "000001"]
    assert not cfg.output.exists()
    monkeypatch.setattr(pq, "write_table", real)
    assert run(cfg) == 0
    assert content_of(cfg.output) == content_of(cheaply[1])


@pytest.mark.slow
def test_a_really_full_disk_at_every_stage(recorded, networks, cheaply, tmp_path, capsys):
    """A file system that grows a little after each failure: episodes, joining and videos fail in turn."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    cfg, finished = cheap(recorded, networks, disk / "out"), []
    try:
        for size in range(300, 6000, 300):
            if run(cfg) == 0:
                break
            assert "the disk is full" in capsys.readouterr().err
            assert not cfg.output.exists()
            work = disk / ".out.unfinished"
            assert not {p.name for p in work.iterdir()} & {"dataset", "groups", "cache"}
            finished.append(len(list(work.glob("episodes/*"))))
            assert not list(work.glob("episodes/.*"))
            subprocess.run(["mount", "-o", f"remount,size={size}k", str(disk)], check=True)
        assert finished[0] < 4 == finished[-1], finished  # while annotating, and while joining
        assert content_of(cfg.output) == content_of(cheaply[1])
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_what_wraps_a_full_disk_is_recognised():
    wrapped = RuntimeError("An error occurred while generating the dataset")
    wrapped.__cause__ = OSError(errno.ENOSPC, "full")
    assert is_disk_full(wrapped)
    assert not is_disk_full(ValueError("other"))


def test_another_process_with_the_same_rank_is_refused(recorded, networks, tmp_path):
    cfg = cheap(recorded, networks, tmp_path / "out", rank=0, world_size=2)
    workspace = AnnotationSetup.of(cfg).workspace
    workspace.open()
    with workspace.claim("rank0"), pytest.raises(WorkspaceError, match="Another process is rank0"):
        annotate(cfg)
    assert WorkShare.of(cfg, workspace, [0, 1, 2, 3]).mine == [0, 2]


def test_processes_of_other_world_sizes_may_meet_in_an_episode(recorded, networks, tmp_path):
    """The slower one finds its episode made by the other and goes on, with nothing half-written left."""
    writer = episode_annotator(AnnotationSetup.of(cheap(recorded, networks, tmp_path / "out")))
    theirs = tmp_path / "000001"

    def overtaken(frames):
        theirs.mkdir(exist_ok=True)
        (theirs / "valid.json").write_text("theirs")

    writer.write(1, theirs, overtaken)
    assert (theirs / "valid.json").read_text() == "theirs"
    assert [p.name for p in tmp_path.iterdir()] == ["000001"]


def test_a_late_process_finds_the_dataset_published(recorded, networks, cheaply, tmp_path, monkeypatch):
    """Another one publishes and removes the work folder between this one's first look and its claim."""
    cfg = cheap(recorded, networks, tmp_path / "out")
    real = Workspace.open

    def published_meanwhile(self):
        real(self)
        shutil.rmtree(self.root)
        shutil.copytree(cheaply[1], cfg.output)

    monkeypatch.setattr(Workspace, "open", published_meanwhile)
    monkeypatch.setattr(
        AnnotationSetup, "load_estimators", lambda _: pytest.fail("it works although all is done")
    )
    assert annotate(cfg) == cfg.output
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_rank_sweeps_its_own_leftovers_alone(recorded, networks, tmp_path):
    """Containers share host names and process ids; a rank, which is locked, they cannot share."""
    cfg = cheap(recorded, networks, tmp_path / "out", rank=1, world_size=12)
    episodes = Workspace(COMMAND, cfg.output, {}).episodes
    kept = [episodes / name for name in ("000001", ".000000.rank0", ".000002.rank11")]
    for folder in (*kept, episodes / ".000001.rank1"):
        folder.mkdir(parents=True)
    WorkShare.of(cfg, Workspace(COMMAND, cfg.output, {}), [0, 1]).sweep()
    assert sorted(episodes.iterdir()) == sorted(kept)


def test_who_waits_for_the_others_in_vain_names_what_is_missing(recorded, networks, tmp_path):
    options = {"rank": 0, "world_size": 2, "wait_minutes": 0.0}
    with pytest.raises(WorkspaceError, match=r"2 of 4.*\[1, 3\]"):
        annotate(cheap(recorded, networks, tmp_path / "out", **options))


def test_many_shards_are_joined_in_groups(recorded, networks, cheaply, tmp_path, monkeypatch):
    from multismolvla_data.annotate import merge as annotate_merge

    monkeypatch.setattr(annotate_merge, "GROUP", 2)
    root = annotate(cheap(recorded, networks, tmp_path / "out"))
    assert content_of(root) == content_of(cheaply[1])
    new = opened(root)
    assert [int(new[i]["episode_index"]) for i in (0, 6, 11, 21)] == [0, 1, 2, 3]


def test_shards_hold_no_more_pictures_in_memory_than_two_batches(recorded, networks, monkeypatch, tmp_path):
    seen = []
    real = SourceDataset.pictures

    def spy(self, table, episode, start, stop, keys):
        seen.append(stop - start)
        return real(self, table, episode, start, stop, keys)

    monkeypatch.setattr(SourceDataset, "pictures", spy)
    writer = episode_annotator(AnnotationSetup.of(cheap(recorded, networks, tmp_path / "out", batch_size=4)))
    advanced: list[int] = []
    writer.write(0, tmp_path / "000000", advanced.append)
    assert seen == advanced == [4, 2]
