"""Policies x conditions x suites: from one file, over several processes, on real LIBERO tasks."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml
from msgspec.structs import replace

from multismolvla.corruption import CLEAN
from multismolvla.corruption.names import ATTACK_RADII
from multismolvla_eval.config import EnvironmentArguments
from multismolvla_eval.environments import load_sources
from multismolvla_eval.evaluate import evaluate, main, parse
from multismolvla_eval.forecast import hours, seconds_per_episode, summary_lines
from multismolvla_eval.protocol.levels import LEVELS, resolve
from multismolvla_eval.protocol.schedule import CLIP_CANDIDATES, Counts, episodes
from multismolvla_eval.records.schema import SuiteFacts
from multismolvla_eval.records.shards import locate_shard, refuse_other_divisions, share_gpus, speaks
from multismolvla_eval.records.store import ResultsError, read_run, run_lock, write_manifest

FIXTURES = Path(__file__).parents[1] / "fixtures"
CONFIGS = FIXTURES.parents[1] / "configs" / "eval"
#: A process of its own finds the toy environment, and whatever this one was told to find.
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{FIXTURES}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
#: LeRobot's step limits (lerobot 0.6.1).
MAX_STEPS = {"libero_spatial": 280, "libero_object": 280, "libero_goal": 300, "libero_10": 520}
LIBERO = tuple(MAX_STEPS)

MATRIX = """
# comments are kept for the reader
policies:
  - ours=builtin:random # what is measured
  - vanilla=builtin:zero
  - chance=builtin:random
baseline: vanilla
clean_only: [chance]
env:
  type: toy_environment:ToySource
  task: toy_a,toy_b
  task_ids: [0]
conditions: [C1:-rgb]
clean_episodes: 2
clean_repeats: 2
episodes: 1
clips: 0
"""


def test_a_file_holds_the_matrix_and_the_command_line_overrides_it(tmp_path):
    path = tmp_path / "matrix.yaml"
    path.write_text(MATRIX)
    config = parse([f"--config_path={path}", "--episodes=3", "--env.task=toy_c", "--dry-run"])
    assert list(config.policy_paths()) == ["ours", "vanilla", "chance"]
    assert (config.episodes, config.clean_repeats, config.env.task, config.env.task_ids) == (
        3,
        2,
        "toy_c",
        [0],
    )
    assert config.dry_run
    config.check()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (MATRIX.replace("episodes: 1", "epizodes: 1"), "epizodes"),
        ("policies: [", "matrix.yaml"),
        (MATRIX.replace("clean_only: [chance]", "clean_only: [vanilla]"), "--clean_only names 'vanilla'"),
        (MATRIX.replace("toy_a,toy_b", "','"), "names no suite"),
        (MATRIX + "rename_map: {nobody: {a: b}}", "--rename_map has an entry for 'nobody'"),
        (
            MATRIX.replace("ours=builtin:random", "ours=no_vision:builtin:zero"),
            "no_vision: takes a checkpoint",
        ),
    ],
)
def test_mistakes_in_the_file_are_named(text, message, tmp_path, capsys):
    path = tmp_path / "matrix.yaml"
    path.write_text(text)
    assert main([f"--config_path={path}", f"--output={tmp_path / 'run'}"]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", sorted(LEVELS))
def test_the_levels_of_the_protocol_are_there_as_files(name):
    text = (CONFIGS / f"{name}.yaml").read_text()
    config = parse([f"--config_path={CONFIGS / name}.yaml"])
    config.check()
    assert config.level == name
    assert config.env.suites() == list(LIBERO)
    assert text.startswith(f"# multismolvla-eval --config_path=configs/eval/{name}.yaml")
    level, policies, clean_only = LEVELS[name], len(config.policies), len(config.clean_only)
    per_task = policies * level.clean_episodes * level.clean_repeats
    per_task += (policies - clean_only) * level.episodes * (len(level.conditions) - 1)
    numbers = dict.fromkeys(LIBERO, per_task * (level.tasks or 10))
    suites = {s: SuiteFacts(type="libero", tasks={}, max_steps=n) for s, n in MAX_STEPS.items()}
    told = hours(numbers, seconds_per_episode(suites, []), workers=1)
    told = f"{told:.1f}" if told < 10 else f"{told:,.0f}"
    expected = f"# {sum(numbers.values()):,} episodes, about {told} h of simulation"
    assert expected in text, f"the header must say {expected!r}"
    assert yaml.safe_load(text)["output"] == f"outputs/eval/{name}"


def test_the_adversarial_matrix_has_a_control_for_each_radius_and_one_that_must_break_everything():
    config = parse([f"--config_path={CONFIGS / 'adversarial.yaml'}"])
    config.check()
    attacks = {c.id for c in resolve(config.conditions, ("image", "image2")) if c.attack}
    assert {f"C6:rgb={t}@{r}" for t in ("policy", "random_sign") for r in ATTACK_RADII} <= attacks
    assert "C6:rgb=policy@64" in attacks
    assert config.batch_size == 1


@pytest.mark.parametrize("name", ["libero_tiny", "libero_tiny_spatial"])
def test_libero_tiny_is_evaluated_as_it_was_recorded(name):
    config = parse([f"--config_path={CONFIGS / f'{name}.yaml'}"])
    config.check()
    preset = yaml.safe_load((CONFIGS.parent / f"{name}.yaml").read_text())
    (recorded,) = preset["make_dataset"]
    assert config.conditions == parse([f"--config_path={CONFIGS / 'libero_tiny.yaml'}"]).conditions
    assert (
        str(config.output.parent) == str(Path(preset["output"]).parent) == str(Path(preset["dataset"]).parent)
    )
    assert all(f"{config.output.parent}/" in policy for policy in config.policies if "expert" not in policy)
    options = config.env.options
    assert f"--suite={config.env.task} " in recorded
    assert f"--size={options['observation_height']} --render_quality={options['render_quality']}" in recorded
    assert "--init_states=20-49" in recorded  # the evaluation's are 0 to 19


def test_every_look_at_a_plan_is_fair_over_suites_seeds_and_policies():
    conditions = resolve(["C1:-rgb", "C2:rgb=zero"], ("image",))
    tasks = {"a": [0, 1], "b": [0]}
    plan = episodes(["x", "y", "z"], tasks, conditions, Counts(4, 2, 3), clips=1, clean_only=["z"])
    assert len(plan) == len({e.key for e in plan}) == 3 * (3 * 4 * 3 + 2 * 2 * 2)
    assert {e.repeat for e in plan if e.condition != "C0"} == {0}
    assert {e.condition for e in plan if e.policy == "z"} == {"C0"}
    first = plan[:9]
    assert {(e.condition, e.episode, e.repeat) for e in first} == {("C0", 0, 0)}, (
        "first one clean episode of every task"
    )
    assert [e.policy for e in first[:3]] == ["x", "y", "z"]
    half = Counter((e.suite, e.condition, e.repeat, e.policy) for e in plan[: len(plan) // 2])
    whole = Counter((e.suite, e.condition, e.repeat, e.policy) for e in plan)
    assert all(0.3 <= half[cell] / whole[cell] <= 0.7 for cell in whole)
    assert {(e.suite, e.task_id) for e in plan if e.clip} == {("a", 0), ("b", 0)}
    assert all(e.repeat == 0 and e.episode < CLIP_CANDIDATES for e in plan if e.clip)


def test_suites_can_be_added_and_a_changed_one_is_refused(make_config):
    config = make_config(
        env=EnvironmentArguments("toy_environment:ToySource", "toy_a,toy_b", [0]), clean_repeats=2,
        clean_episodes=1,
        conditions=[], note=["x"],
    )  # fmt: skip
    evaluate(config)
    manifest, rows = read_run(config.output)
    assert Counter(r.suite for r in rows) == {"toy_a": 4, "toy_b": 4}
    assert manifest.clean_repeats == 2
    assert all(r.suite_hash == manifest.suites[r.suite].suite_hash for r in rows)
    by = {(r.policy, r.suite, r.repeat): r for r in rows}
    for suite in ("toy_a", "toy_b"):
        first, second = by["ours", suite, 0], by["ours", suite, 1]
        assert first.init_state == second.init_state
        assert first.actions != second.actions, "the repetition draws other noise"
        assert first.noise_seed == by["vanilla", suite, 0].noise_seed, "and is paired within itself"
        assert second.noise_seed == by["vanilla", suite, 1].noise_seed
    assert by["vanilla", "toy_a", 0].actions == by["vanilla", "toy_b", 1].actions, "zeros are zeros"

    config.env.task = "toy_c"
    evaluate(config)
    manifest, rows = read_run(config.output)
    assert list(manifest.suites) == ["toy_a", "toy_b", "toy_c"]
    assert len(rows) == 12

    changed = dict(manifest.suites)
    changed["toy_c"] = replace(changed["toy_c"], assets="other", suite_hash="other")
    write_manifest(config.output, replace(manifest, suites=changed))
    with pytest.raises(ResultsError, match=r"'toy_c'"):
        read_run(config.output)
    with pytest.raises(ResultsError, match=r"'toy_c'.*assets 'other', now 'none'"):
        evaluate(config)
    del changed["toy_c"]
    write_manifest(config.output, replace(manifest, suites=changed))
    with pytest.raises(ResultsError, match="'toy_c'"):
        read_run(config.output)


def test_processes_of_a_launcher_share_a_run_and_agree_with_one_process(tmp_path):
    """Two real processes as ``accelerate launch`` starts them, on one folder at the same time."""
    path = tmp_path / "matrix.yaml"
    path.write_text(MATRIX)
    command = [sys.executable, "-m", "multismolvla_eval.evaluate", f"--config_path={path}"]
    numbers = [
        {"RANK": str(i), "LOCAL_RANK": str(i), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"} for i in range(2)
    ]
    together, alone = tmp_path / "together", tmp_path / "alone"
    processes = [
        subprocess.Popen(
            [*command, f"--output={together}"], env={**ENVIRONMENT, **n}, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for n in numbers
    ]  # fmt: skip
    outputs = [p.communicate() for p in processes]
    assert [p.returncode for p in processes] == [0, 0], outputs
    assert "missing" in outputs[0][0]
    assert outputs[1] == ("", ""), "only the first process speaks"
    result = subprocess.run([*command, f"--output={alone}"], env=ENVIRONMENT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr

    parts = [(together / f"episodes-{i}of2.jsonl").read_text().splitlines() for i in (0, 1)]
    assert all(parts)
    manifest, rows = read_run(together)
    assert len(rows) == sum(map(len, parts)) == 2 * (3 * 2 * 2 + 2)
    assert {r.worker for r in rows} == {0, 1}, "each its own worker and log"
    other = {r.key: r for r in read_run(alone)[1]}
    for row in rows:
        twin = other.pop(row.key)
        for name in ("actions", "start", "policy_inputs", "success", "steps", "suite_hash"):
            assert getattr(row, name) == getattr(twin, name)
    assert not other
    assert manifest.clean_only == ["chance"]


def test_a_run_cannot_be_divided_in_two_ways_at_once(tmp_path):
    refuse_other_divisions(tmp_path, 2)
    with run_lock(tmp_path / "episodes-0of2.lock"):
        refuse_other_divisions(tmp_path, 2)
        with pytest.raises(ResultsError, match=r"episodes-0of2.lock.*2 parts.*3"):
            refuse_other_divisions(tmp_path, 3)
    refuse_other_divisions(tmp_path, 3)


def test_where_a_process_finds_its_part():
    launcher = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    assert locate_shard("0/1", {}) == (0, 1)
    assert locate_shard("2/3", {}) == (2, 3)
    assert locate_shard("0/1", launcher) == (1, 4)
    assert (
        len({locate_shard(f"{i}/3", {**launcher, "RANK": str(r)}) for i in range(3) for r in range(4)}) == 12
    )
    assert speaks({})
    assert not speaks(launcher)
    for visible, expected in (("0,1,2", "1"), ("5", "5"), ("", "")):
        environment = {**launcher, "CUDA_VISIBLE_DEVICES": visible}
        share_gpus(environment)
        assert environment["CUDA_VISIBLE_DEVICES"] == expected
    with pytest.raises(ValueError, match="SLURM_ARRAY_TASK_ID"):
        locate_shard("1-4", {})
    with pytest.raises(ValueError, match="RANK=4 and WORLD_SIZE=4"):
        locate_shard("0/1", {**launcher, "RANK": "4"})


@pytest.fixture
def assets_in_use(libero_assets, monkeypatch):
    monkeypatch.setenv("MULTISMOLVLA_LIBERO_ASSETS", str(libero_assets))
    return libero_assets


def test_a_dry_run_of_libero_loads_no_policy_and_starts_no_simulator(assets_in_use, tmp_path, capsys):
    config = [f"--config_path={CONFIGS / 'standard.yaml'}", f"--output={tmp_path / 'run'}"]
    assert main([*config, "--shard=1/2", "--dry-run"]) == 0
    text = capsys.readouterr().out
    cells = len(LEVELS["standard"].conditions)
    total = 40 * (5 * 3 * 10 + 2 * 10 * (cells - 1))
    assert f"5 policies x 40 tasks x {cells} conditions: {total} episodes" in text
    assert "libero_10" in text
    assert "policies, resets and the expert's search come on top" in text
    assert "warning: there is no policy under outputs/libero_b/train/base" in text
    assert not (tmp_path / "run").exists()


@pytest.fixture
def no_assets(monkeypatch):
    monkeypatch.delenv("MULTISMOLVLA_LIBERO_ASSETS", raising=False)
    monkeypatch.setattr("multismolvla.system.libero_assets._places", list)


@pytest.mark.parametrize("type_", ["multismolvla_libero", "libero"])
def test_only_the_run_needs_liberos_assets(type_, no_assets, tmp_path, capsys):
    given = [
        "--policies=[a=builtin:zero]",
        f"--env.type={type_}",
        "--env.task=libero_goal",
        "--conditions=[]",
    ]
    given += ["--episodes=2", f"--output={tmp_path / 'run'}"]
    assert main([*given, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "1 policies x 10 tasks x 1 conditions: 20 episodes" in out
    arguments = EnvironmentArguments(type_, "libero_goal", [0], {})
    with pytest.raises(FileNotFoundError, match=r"'libero_goal'.*MULTISMOLVLA_LIBERO_ASSETS.*--env\.options"):
        load_sources(arguments)


def test_a_dry_run_knows_what_plugins_register(tmp_path, monkeypatch, capsys):
    (tmp_path / "made_up_plugin.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    given = ["--policies=[a=builtin:zero]", "--env.type=toy_environment:ToySource", "--conditions=[]"]
    assert main([*given, "--dry-run", "--plugins=[made_up_plugin]", f"--output={tmp_path / 'run'}"]) == 0
    assert sys.modules.pop("made_up_plugin")


def test_too_few_initial_states_are_said():
    plan = episodes(["p"], {"suite": [0]}, [CLEAN], Counts(21, 1))
    suite = SuiteFacts(type="t", tasks={0: "t"}, max_steps=5, init_states=20, init_split="eval")
    warning, _ = summary_lines({"suite": suite}, plan, plan, [], workers=1)
    assert "20 different initial states per task and the plan asks for 21" in warning
    assert "init_split: all" in warning
    assert len(summary_lines({"suite": replace(suite, init_states=21)}, plan, plan, [], workers=1)) == 1


@pytest.mark.parametrize(
    ("type_", "options", "message"),
    [
        ("multismolvla_libero", "{init_splt: all}", "no 'init_splt'. Did you mean 'init_split'?"),
        ("multismolvla_libero", "{init_split: foo}", "foo: expected one of"),
        ("libero", "{init_split: all}", "no 'init_split'"),
        ("nonsense", "{}", "not registered with LeRobot"),
    ],
)
def test_a_dry_run_refuses_the_options_that_the_run_refuses(type_, options, message, tmp_path, capsys):
    given = [
        "--policies=[a=builtin:zero]", f"--env.type={type_}", f"--env.options={options}",
        "--dry-run", "--conditions=[]", f"--output={tmp_path / 'run'}",
    ]  # fmt: skip
    assert main(given) == 2
    assert message in capsys.readouterr().err


def test_a_dry_run_says_what_it_takes_for_a_hub_id(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    given = [
        "--policies=[a=outputs/missing]",
        "--env.type=toy_environment:ToySource",
        "--dry-run",
        "--conditions=[]",
    ]
    assert main(given) == 0
    assert "outputs/missing is no folder here and is taken for a hub id" in capsys.readouterr().out
    (tmp_path / "outputs").mkdir()
    assert main(given) == 0
    assert "warning: there is no policy under outputs/missing yet" in capsys.readouterr().out
    assert main([g for g in given if g != "--dry-run"]) == 2
    assert "There is no 'outputs/missing', but a folder 'outputs'" in capsys.readouterr().err


@pytest.mark.sim
def test_files_that_a_task_lacks_are_named_before_the_run(libero_assets, tmp_path):
    """Of a copy of the assets without a model and without a texture that another model names."""
    from lerobot_env_multismolvla.libero.files import refuse_missing_files
    from lerobot_env_multismolvla.libero.setup import ensure_libero_config, libero_package_folder

    ensure_libero_config()
    for file in (f for f in libero_assets.rglob("*") if f.is_file()):
        link = tmp_path / file.relative_to(libero_assets)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(file)
    tasks = sorted((libero_package_folder() / "bddl_files" / "libero_object").glob("*alphabet_soup*.bddl"))
    refuse_missing_files(tasks, tmp_path)
    lost = ["stable_hope_objects/alphabet_soup/texture_map.png", "stable_scanned_objects/basket/basket.xml"]
    for name in lost:
        (tmp_path / name).unlink()
    with pytest.raises(
        FileNotFoundError, match=f"2 of the files.*{', '.join(lost)}.*--fetch-assets.*task_ids"
    ):
        refuse_missing_files(tasks, tmp_path)
    with pytest.raises(FileNotFoundError, match=r"nowhere.bddl.*hf-libero"):
        refuse_missing_files([*tasks, tmp_path / "nowhere.bddl"], tmp_path)


@pytest.mark.sim
@pytest.mark.slow
def test_one_task_of_each_suite(assets_in_use, make_config):
    options = {"episode_length": 4, "observation_height": 128, "observation_width": 128, "num_steps_wait": 1,
               "hard_reset": False}  # fmt: skip
    config = make_config(
        policies=["zero=builtin:zero"], conditions=[], clean_episodes=1,
        env=EnvironmentArguments(
            task=",".join((*LIBERO, "multismolvla_mini")), task_ids=[0], options=options
        ),
    )  # fmt: skip
    evaluate(config)
    manifest, rows = read_run(config.output)
    assert [r.suite for r in rows] == list(manifest.suites) == [*LIBERO, "multismolvla_mini"]
    assert all((r.steps, r.cause) == (4, "time_out") for r in rows)
    assert len({r.start for r in rows}) == 5
    for suite in manifest.suites.values():
        assert (suite.max_steps, suite.init_split, suite.num_steps_wait) == (4, "eval", 1)
        assert len(suite.tasks) == 1
    assert manifest.suites["multismolvla_mini"].mini_version
    assert manifest.suites["libero_object"].init_states == 20
    assert len({s.assets for s in manifest.suites.values()}) == 2, (
        "one set for LIBERO's suites, one for the mini suite"
    )
    assert manifest.suites["multismolvla_mini"].assets_standins is False
    keys = {k for r in rows for k in r.policy_inputs}
    assert {"observation.images.image_depth", "observation.images.image2_seg"} <= keys
