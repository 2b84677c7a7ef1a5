"""``train.py PRESET --dry-run``: sizes, licences, commands and estimates, without a network."""

from __future__ import annotations

import dataclasses
import itertools
import re
import resource
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from multismolvla.fourm import MODALITY_INFO, FourMConfig
from multismolvla.pretrained import SOURCES
from multismolvla_data.formats.metadata import DatasetMetadata, write_metadata
from multismolvla_run import dry_run, estimate, hub, pipeline, presets

REPO = Path(__file__).resolve().parents[2]
CONFIGS = REPO / "configs"
OFFICIAL = ("libero_b", "libero_l", "libero_xl", "so101")
STAGES = ["base", "connector", "sensor_use_check", "robust", "health"]


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty hub cache, and no network whatever happens."""

    def no_network(*args, **kwargs):
        raise AssertionError("the dry run asked the network")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def put_into_cache(cache: Path, repo: str) -> None:
    folder = cache / f"models--{repo.replace('/', '--')}" / "snapshots" / "0123"
    folder.mkdir(parents=True)
    for name in SOURCES[repo].files:
        (folder / name).write_text("x")


def put_dataset(folder: Path) -> None:
    """What the driver takes for a LeRobotDataset."""
    (folder / "meta").mkdir(parents=True)
    (folder / "meta/info.json").write_text("{}")


def answer(name: str, capsys, *words: str) -> str:
    assert pipeline.main([name, "--dry-run", *words], configs=CONFIGS) == 0
    return capsys.readouterr().out


def options(name: str, stage: str) -> tuple[dict, dict]:
    preset = presets.load_preset(name, CONFIGS)
    return dry_run.policy_options(preset, preset.stage(stage))


# ------------------------------------------------------------------------------------------------ the answer


@pytest.mark.parametrize("name", OFFICIAL)
def test_it_tells_what_is_fetched_run_and_needed(name, cache, tmp_path, capsys) -> None:
    text = answer(name, capsys, f"--output={tmp_path / 'out'}", f"--dataset={tmp_path / 'data'}")
    tower = {"libero_l": "L", "libero_xl": "XL"}.get(name, "B")
    for repo in (
        "lerobot/smolvla_base", "HuggingFaceTB/SmolVLM2-500M-Video-Instruct", f"EPFL-VILAB/4M-21_{tower}",
        "nielsr/imagebind-huge",
        "EPFL-VILAB/4M_tokenizers_depth_8k_224-448", "EPFL-VILAB/4M_tokenizers_semseg_4k_224-448",
        "EPFL-VILAB/4M_tokenizers_ImageBind-H14_8k_224-448",
        "EPFL-VILAB/4M_tokenizers_ImageBind-H14-global_8k_16_224",
    ):  # fmt: skip
        size, licence = re.escape(SOURCES[repo].size), re.escape(SOURCES[repo].licence)
        assert re.search(rf"to fetch +{size}  {re.escape(repo)}: .*\n +licence: {licence}\n", text), repo
    assert [
        line.split()[1].rstrip(":") for line in text.splitlines() if re.match(r"\[\d/5\]", line)
    ] == STAGES
    assert text.count("lerobot-train") >= 3
    assert "computed and not measured" in text
    assert "25% of the vendor's dense bf16 peak" in text
    for gpu in estimate.GPUS:
        assert text.count(f"{gpu.memory_gb} GB ({gpu.model})") == 3
    assert re.search(r"disk: \d+ GB", text)
    assert list(tmp_path.iterdir()) == []  # nothing was written


def test_what_is_cached_is_not_fetched_again(cache, tmp_path, capsys) -> None:
    words = (f"--output={tmp_path / 'out'}",)
    before = answer("libero_b", capsys, *words)
    put_into_cache(cache, "EPFL-VILAB/4M-21_B")
    after = answer("libero_b", capsys, *words)
    assert re.search(r"cached +3\.37 GB  EPFL-VILAB/4M-21_B", after)
    fetch = [float(re.search(r"still to fetch: ([\d.]+) GB", text)[1]) for text in (before, after)]
    assert fetch[0] - fetch[1] == pytest.approx(3.4, abs=0.11)


def test_half_a_repository_is_not_cached(cache) -> None:
    put_into_cache(cache, "EPFL-VILAB/4M-21_B")
    assert hub.is_cached("EPFL-VILAB/4M-21_B")
    next(cache.glob("*/snapshots/*/model.safetensors")).unlink()
    assert not hub.is_cached("EPFL-VILAB/4M-21_B")
    assert not hub.is_cached("EPFL-VILAB/4M-21_L")


@pytest.mark.parametrize(
    ("name", "commands"),
    [
        ("libero_b", ("multismolvla-replay", "multismolvla-annotate")),
        ("so101", ("lerobot-record", "multismolvla-annotate")),
        ("mini", ("multismolvla-record",)),
    ],
)
def test_a_missing_dataset_is_told_with_the_commands_that_make_it(
    name, commands, cache, tmp_path, capsys
) -> None:
    words = (f"--output={tmp_path / 'out'}", f"--dataset={tmp_path / 'data'}")
    text = answer(name, capsys, *words)
    assert f"{tmp_path / 'data'} (missing)" in text
    assert all(f"    {command}" in text for command in commands)
    assert f"--output={tmp_path / 'data'}" in text
    # the run itself says the same
    assert pipeline.main([name, *words], configs=CONFIGS) == 2
    assert all(command in capsys.readouterr().err for command in commands[:1])

    put_dataset(tmp_path / "data")
    text = answer(name, capsys, *words)
    assert "(there)" in text
    assert "make it with" not in text


def test_what_making_the_dataset_downloads_is_told_until_the_dataset_is_there(
    cache, tmp_path, capsys
) -> None:
    from multismolvla_data.annotate.config import AnnotateConfig

    words = (f"--output={tmp_path / 'out'}", f"--dataset={tmp_path / 'data'}")
    before = answer("so101", capsys, *words)
    defaults = AnnotateConfig()
    for repo in (defaults.depth_model, defaults.seg_model, defaults.thermal_model):
        size, purpose = re.escape(SOURCES[repo].size), SOURCES[repo].purpose
        assert re.search(rf"to fetch +{size}  {re.escape(repo)}: {purpose}\n +licence: ", before), repo
    for name in ("libero_b", "libero_xl"):
        libero = answer(name, capsys, *words)
        assert re.search(r"data set +yifengzhu-hf/LIBERO-datasets: the demonstrations", libero)
        assert re.search(r"data set +lerobot/libero-assets: .*multismolvla-doctor --fetch-assets", libero)

    put_dataset(tmp_path / "data")
    after = answer("so101", capsys, *words)
    assert "ThermalGen" not in after
    disk = [int(re.search(r"disk: (\d+) GB", text)[1]) for text in (before, after)]
    assert disk[0] - disk[1] == pytest.approx(
        4.94, abs=1
    )  # ThermalGen 4.4, Mask2Former 0.4, Depth Anything 0.1


def test_the_mini_preset_downloads_nothing(cache, tmp_path, capsys) -> None:
    text = answer("mini", capsys, f"--output={tmp_path / 'out'}")
    assert "Nothing is downloaded" in text
    assert "to fetch" not in text


def test_hours_follow_from_measured_seconds_and_the_steps_that_are_left(cache, tmp_path, capsys) -> None:
    put_dataset(tmp_path / "data")
    words = (f"--output={tmp_path / 'out'}", f"--dataset={tmp_path / 'data'}", "--until=base")

    def hours(*more: str) -> dict[str, float]:
        text = answer("libero_tiny", capsys, *words, *more)
        return {name: float(h) for name, h in re.findall(r"^  (\w+) +([\d.]+) h$", text, re.MULTILINE)}

    preset = presets.load_preset("libero_tiny", CONFIGS)
    stages = [preset.stage(name) for name in ("pretrain", "tokens", "base")]
    assert all(stage.core_seconds_per_step or stage.core_seconds for stage in preset.stages)
    found = hours()
    assert list(found) == ["pretrain", "tokens", "base", "together"]
    for stage in stages:
        steps = stage.steps or stage.args.get("steps", 0)
        needed = stage.core_seconds + steps * stage.core_seconds_per_step
        assert found[stage.name] == pytest.approx(needed / 3600, abs=0.006)
    assert found["together"] == pytest.approx(sum(found.values()) / 2, abs=0.02)
    more = hours("--", "pretrain:--steps=6000", "base:--steps=60000")
    for stage in (stages[0], stages[2]):
        longer = more[stage.name] * 3600 - stage.core_seconds
        assert longer == pytest.approx(10 * (found[stage.name] * 3600 - stage.core_seconds), rel=0.05)
    assert "Hours of one core" not in answer("mini", capsys, f"--output={tmp_path / 'out'}")


def test_recording_counts_until_the_dataset_is_there(cache, tmp_path, capsys) -> None:
    words = (f"--output={tmp_path / 'out'}", f"--dataset={tmp_path / 'data'}")
    assert "  the data set       1.00 h" in answer("libero_tiny", capsys, *words)
    put_dataset(tmp_path / "data")
    assert "the data set" not in answer("libero_tiny", capsys, *words)


def test_batch_size_from_the_command_line_counts(cache, tmp_path, capsys) -> None:
    text = answer(
        "libero_b", capsys, f"--output={tmp_path}", "--", "--batch_size=16", "robust:--batch_size=8"
    )
    assert re.search(r"connector: 8000 steps of batch size 16;", text)
    assert re.search(r"robust: 30000 steps of batch size 8;", text)


def test_options_from_the_command_line_count(cache, tmp_path, capsys) -> None:
    from multismolvla.fourm import FourMEncoder

    slim = tmp_path / "slim"
    FourMEncoder(FourMConfig(32, 2, 2, ("rgb@224",)), ["rgb@224"]).save_pretrained(slim)
    text = answer(
        "libero_xl", capsys, f"--output={tmp_path / 'out'}", "--", f"connector:--policy.encoder={slim}"
    )
    assert not re.search(r"fetch .*4M-21_XL", text)
    assert f"--policy.encoder={slim}" in text
    before = answer("libero_xl", capsys, f"--output={tmp_path / 'out'}")

    def memory(shown: str) -> int:
        return int(re.search(r"robust: .* (\d+) GB of GPU memory", shown)[1])

    assert memory(text) < memory(before)  # stage 2 inherits the tower


def test_it_answers_at_once() -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    code = (
        "import sys; from multismolvla_run.pipeline import main; main(['libero_xl', '--dry-run'], configs="
        "__import__('pathlib').Path('configs'));"
        "print({'torch', 'lerobot', 'numpy', 'huggingface_hub'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0


# ------------------------------------------------------------------------------------------------ presets


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_presets_have_the_agreed_options(name) -> None:
    policy, _ = options(name, "robust")
    assert policy["domains"] == {
        "rgb": "rgb@224",
        "depth": "tok_depth@224",
        "seg": "tok_semseg@224",
        "thermal": "tok_imagebind@224+tok_imagebind_global",
    }
    assert (policy["tokenizers"], policy["thermal_route"], policy["imagebind_rows"]) == (
        "official",
        "vision",
        "trunk",
    )
    assert policy["stage"] == "robust"
    assert options(name, "connector")[0]["stage"] == "connector"
    assert options(name, "base")[0]["vision_tower"] == "siglip"


def test_the_sizes_differ_in_tower_and_learning_rate_alone() -> None:
    base, *others = (options(f"libero_{size}", "robust")[0] for size in ("b", "l", "xl"))
    for other in others:
        assert {k for k in base if base[k] != other[k]} == {"encoder"}
    rates = [options(f"libero_{size}", "connector")[0]["optimizer_lr"] for size in ("b", "l", "xl")]
    assert rates == sorted(rates, reverse=True)


def test_label_numbers_are_those_of_the_label_tables() -> None:
    from multismolvla.tokenizers.labels import LabelTable

    libero, own = options("libero_b", "robust")[0], options("so101", "robust")[0]
    assert libero["num_labels"] == LabelTable.load(libero["seg_labels"]).num_source_ids
    assert own["num_labels"] == LabelTable.load("coco_panoptic").num_source_ids == 134


@pytest.mark.parametrize("name", ["libero_b", "so101"])  # the others extend libero_b
def test_commands_that_make_datasets_are_right(name) -> None:
    """Options that the programs have, and ids that the policy accepts."""
    import draccus

    from multismolvla_data.annotate.config import AnnotateConfig
    from multismolvla_data.replay.config import ReplayConfig

    preset = presets.load_preset(name, CONFIGS)
    commands = [shlex.split(line.replace("{dataset}", "there")) for line in preset.make_dataset]
    for _, *words in (c for c in commands if c[0] == "multismolvla-replay"):  # parsing it loads the simulator
        given = {word.partition("=")[0].removeprefix("--") for word in words}
        assert given <= {field.name for field in dataclasses.fields(ReplayConfig)}
    assert commands[-1][0] == "multismolvla-annotate"
    annotate = draccus.parse(AnnotateConfig, args=commands[-1][1:])
    policy, _ = options(name, "robust")
    assert annotate.domains == {m: d for m, d in policy["domains"].items() if m != "rgb"}
    for same in ("tokenizers", "thermal_route", "imagebind_rows", "imagebind"):
        assert getattr(annotate, same) == policy[same]
    assert annotate.seg_labels == policy.get("seg_labels", "coco_panoptic")
    assert annotate.num_labels in (None, policy["num_labels"])
    # stage 1 says it, later ones take it from its checkpoint
    assert annotate.square == options(name, "connector")[0].get("square", "crop")


def test_downloads_must_be_a_mapping(tmp_path) -> None:
    (tmp_path / "x.yaml").write_text(
        "dataset: a\noutput: b\nstages: {s: {run: lerobot-train, steps: 1}}\ndownloads: [a/b]\n"
    )
    with pytest.raises(presets.PresetError, match="downloads"):
        presets.load_preset("x", tmp_path)


def test_make_dataset_must_be_a_list(tmp_path) -> None:
    (tmp_path / "x.yaml").write_text(
        "dataset: a\noutput: b\nstages: {s: {run: lerobot-train, steps: 1}}\nmake_dataset: record\n"
    )
    with pytest.raises(presets.PresetError, match="make_dataset"):
        presets.load_preset("x", tmp_path)


# ------------------------------------------------------------------------------------------------ estimates


def test_sizes_are_those_of_the_core() -> None:
    for repo, size in estimate.TOWERS.items():
        config = FourMConfig.official(repo.rpartition("_")[2])
        assert size == (config.dim, config.encoder_depth, config.mlp_hidden)
    for name, (tokens, entries) in estimate.DOMAINS.items():
        if name in MODALITY_INFO:
            info = MODALITY_INFO[name]
            assert (tokens, entries) == (info.num_tokens, info.vocab or 3 * info.patch_size**2)


def test_operations_of_the_tower() -> None:
    """The specification's table, GFLOPs of one view."""
    table = {"B": [34.7, 45.9, 72.3, 116, 155.8, 170, 173], "XL": [481, 631, 977, 1531, 2015, 2179, 2223]}
    for size, expected in table.items():
        numbers = estimate.TOWERS[f"EPFL-VILAB/4M-21_{size}"]
        for tokens, gflop in zip((196, 256, 392, 604, 784, 844, 860), expected, strict=True):
            assert numbers.operations(tokens) / 1e9 == pytest.approx(gflop, rel=0.005)


def test_parameters_are_those_of_the_real_policy() -> None:
    """Counted in policies of real size (RGB, depth, segmentation; LoRA of rank 16), without the teacher."""
    policy = {"domains": {"rgb": "rgb@224", "depth": "tok_depth@224", "seg": "tok_semseg@224"}}
    siglip = 98_229_504
    base = estimate.estimate({"vision_tower": "siglip"}, {})
    assert (base.parameters, base.trained) == (450_046_176, 99_880_992)
    connector = estimate.estimate(policy | {"stage": "connector"}, {})
    assert connector.parameters - siglip == pytest.approx(456_846_179, rel=1e-4)
    assert connector.trained == 10_046_339
    robust = estimate.estimate(policy | {"stage": "robust"}, {"r": 16})
    assert robust.trained == 17_901_699


def test_estimates_grow_with_tower_batch_and_steps() -> None:
    gpu = estimate.GPUS[2]
    for stage in ("connector", "robust"):
        made = [estimate.estimate(*options(f"libero_{size}", stage)) for size in ("b", "l", "xl")]
        for small, large in itertools.pairwise(made):
            assert small.memory_gb(64) < large.memory_gb(64)
            assert small.hours(gpu, 64, 100, 64) < large.hours(gpu, 64, 100, 64)
        assert made[0].memory_gb(1) < made[0].memory_gb(2)
        assert made[0].hours(gpu, 64, 200, 64) == pytest.approx(2 * made[0].hours(gpu, 64, 100, 64))


@pytest.mark.parametrize("stage", ["base", "connector", "robust"])
def test_loading_counts_where_it_takes_longer_than_computing(stage, cache, tmp_path, capsys) -> None:
    made = estimate.estimate(*options("libero_b", stage))
    small, large = estimate.GPUS[0], estimate.GPUS[-1]
    assert made.hours(small, 64, 100, 8) == pytest.approx(100 * made.computing_s(small, 64) / 3600)
    assert made.hours(large, 64, 100, 8) == pytest.approx(100 * made.loading_s(64, 8) / 3600)
    assert made.hours(large, 64, 100, 16) == pytest.approx(100 * made.computing_s(large, 64) / 3600)
    assert made.hours(small, 64, 100, 0) > made.hours(small, 64, 100, 1)
    text = answer("libero_b", capsys, f"--output={tmp_path}")
    lines = [line for line in text.splitlines() if "GB (" in line]
    assert [("loading decides" in line) for line in lines[:4]] == [False, False, True, True]


def test_a_stage_names_a_data_set_of_its_own(tmp_path, capsys) -> None:
    """One that is missing must be told before the first stage, not after days of training."""
    put_dataset(tmp_path / "data")
    (tmp_path / "other/meta").mkdir(parents=True)
    (tmp_path / "own.yaml").write_text(
        f"dataset: {tmp_path / 'data'}\noutput: {tmp_path / 'out'}\nstages:\n"
        "  first: {run: lerobot-train, steps: 1, args: {dataset.root: '{dataset}'}}\n"
        f"  last: {{run: multismolvla_run.health, args: {{dataset: {tmp_path / 'other'}}}, produces: [a]}}\n"
    )
    assert f"Data: {tmp_path / 'other'} (missing)" in answer(str(tmp_path / "own.yaml"), capsys)
    assert pipeline.main([str(tmp_path / "own.yaml")], configs=CONFIGS) == 2
    assert f"{tmp_path / 'other'} is not a LeRobotDataset" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_data_of_the_evaluations_states_are_refused_before_training(tmp_path, capsys) -> None:
    put_dataset(tmp_path / "data")
    write_metadata(tmp_path / "data", DatasetMetadata(init_split="eval"))
    words = ["mini", f"--dataset={tmp_path / 'data'}", f"--output={tmp_path / 'out'}"]
    assert pipeline.main(words, configs=CONFIGS) == 2
    assert f"{tmp_path / 'data'} was recorded from the evaluation's" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_largest_batch_fits_and_the_next_does_not() -> None:
    made = estimate.estimate(*options("libero_b", "robust"))
    for gpu in estimate.GPUS:
        largest = made.largest_batch(gpu)
        assert made.memory_gb(largest) <= gpu.memory_gb < made.memory_gb(4 * largest)
    tiny = dataclasses.replace(estimate.GPUS[0], memory_gb=3)
    assert made.largest_batch(tiny) == 0


def test_an_encoder_in_a_folder_is_looked_at(tmp_path) -> None:
    from multismolvla.fourm import FourMEncoder

    config = FourMConfig(32, 2, 2, ("rgb@224",))
    FourMEncoder(config, ["rgb@224"]).save_pretrained(tmp_path)
    assert estimate.tower_size(str(tmp_path)) == (32, 2, config.mlp_hidden)
    with pytest.raises(ValueError, match="'some/where'"):
        estimate.tower_size("some/where")
    with pytest.raises(ValueError, match="'tok_clip@224'"):
        estimate.estimate({"domains": {"rgb": "tok_clip@224"}}, {})


# ---------------------------------------------------------------------------------------------- wrong options


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("base:--policy.chunk_sise=4", "Stage 'base': lerobot-train does not know --policy.chunk_sise=4."),
        ("robust:--peft.rr=3", "Stage 'robust': lerobot-train does not know --peft.rr=3."),
        ("robust:--policy.dropout_p_max=2", "Stage 'robust': --policy.dropout_p_max=2.0 must lie in"),
        ("--seed=x", "Stage 'base': .*Couldn't parse 'x' into an int"),
        ("--policy.type=foo", "Stage 'base': --policy.type=foo is no policy"),
    ],
)
@pytest.mark.parametrize("dry", [True, False])
def test_a_wrong_option_of_a_later_stage_is_named_before_the_first_one_starts(
    dry, word, message, tmp_path, capsys
) -> None:
    put_dataset(tmp_path / "data")
    words = ["mini", f"--output={tmp_path / 'out'}", f"--dataset={tmp_path / 'data'}"]
    assert pipeline.main([*words, *(["--dry-run"] if dry else []), "--", word], configs=CONFIGS) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()
