"""The ablation: its arms are stages that training accepts, and its page says what the rows hold."""

from __future__ import annotations

import sys
from collections import Counter

import ablation
import pandas as pd
import pytest
from synthetic import synthetic_run

from multismolvla.system.command import CommandError
from multismolvla_eval.records.schema import MadeWith
from multismolvla_run.presets import load_preset


@pytest.mark.parametrize("arm", ablation.ARMS, ids=lambda arm: arm.name)
def test_an_arm_changes_what_it_says_and_nothing_else(arm, tmp_path):
    ablation.write_preset(ablation.arm_preset(arm), tmp_path / "arm.yaml")
    preset = load_preset(str(tmp_path / "arm.yaml"), ablation.REPO / "configs")
    args = preset.stage(arm.name).args
    model = load_preset("mini_baselines", ablation.REPO / "configs").stage(arm.like)
    changed = {k for k in {*args, *model.args} if args.get(k) != model.args.get(k)}
    assert changed == arm.changes.keys() | {"dataset.streaming"}
    assert preset.stage(arm.name).steps == model.steps
    assert ("health_" + arm.name in [s.name for s in preset.stages]) == arm.health


def test_a_stage_of_another_arm_is_no_arm_to_ask_for():
    """Alone it would be trained and evaluated by nobody, without a word."""
    assert "rgb_only" in ablation.Options().arms
    assert "rgb_connector" not in ablation.Options().arms
    with pytest.raises(ValueError, match="rgb_connector.*expected some of"):
        ablation.Options(arms=["rgb_connector"])


def robust() -> ablation.Arm:
    return next(arm for arm in ablation.ARMS if arm.name == "robust")


def rows(**successes: list[int]) -> pd.DataFrame:
    """Rows of one cell, by arm and training seed: ``robust_1=[1, 0]``."""
    found = []
    for name, values in successes.items():
        arm, _, seed = name.rpartition("_")
        for start, success in enumerate(values):
            row = {
                "arm": arm,
                "seed": int(seed),
                "health": "on",
                "condition": "C0",
                "task": 0,
                "start": start,
            }
            found.append({**row, "success": success, "steps": 9, "commit": "0123456"})
    return pd.DataFrame(found)


def test_the_page_counts_each_cell():
    text = ablation.page(rows(robust_1=[1, 1, 0, 1], robust_2=[0, 1, 0, 1], full_1=[1, 0, 0, 0]))
    (line,) = [line for line in text.splitlines() if line.startswith("| clean: all sensors")]
    cells = [cell.strip() for cell in line.split("|")[2:-1]]
    assert [cell.split(" ")[0] for cell in cells] == ["5/8", "1/4"]
    assert "| `robust` | MultiSmolVLA, the mini preset's recipe | 84,800 | 1, 2 (0123456) |" in text
    assert "rgb_only" not in text
    assert "not announced" not in text, "what nobody has run is left out"


def test_each_training_seed_has_the_commit_of_its_rows():
    found = rows(robust_1=[1], robust_2=[0], robust_3=[1])
    found.loc[found.seed == 1, "commit"] = "fedcba9876543210"
    assert "| 1 (fedcba9), 2, 3 (0123456) |" in ablation.page(found)


def test_a_ceiling_has_seen_less_and_the_page_says_it():
    samples = {arm.name: ablation.training_samples(arm) for arm in ablation.EVALUATED}
    assert samples["robust"] == samples["base_continued"] == samples["full"] == 84_800
    assert samples["ceiling_image"] == samples["ceiling_image2"] == 40_000
    ceiling = rows(ceiling_image2_1=[1, 0]).assign(health="off")
    line = "never had the wrist camera, but the second one (40,000 training samples): 1/2"
    assert line in ablation.page(ceiling)


def test_a_cell_says_what_training_met_and_which_camera_stays():
    found = rows(robust_1=[1])
    found = pd.concat([found.assign(condition=condition) for condition in robust().cells])
    names = [line.split("|")[1].strip() for line in ablation.page(found).splitlines() if line[:1] == "|"]
    seen, unseen = (
        next(n for n in names if n.startswith(f"rgb: {t}")) for t in ("gaussian noise", "motion blur")
    )
    assert seen == "rgb: gaussian noise, severity 3 (training may meet this type)"
    assert unseen == "rgb: motion blur, severity 3"
    twins = [n for n in names if "(the second one stays)" in n]
    assert sum("announced loss of the wrist camera" in n for n in twins) == 1
    assert any(n.startswith("every modality of the wrist camera black") for n in twins)
    assert not any("third-person" in n for n in twins)


def subset_rows(**successes: int) -> pd.DataFrame:
    """Rows of three starts in each of the 15 subsets, by arm."""
    found = [
        {"arm": arm, "seed": seed, "health": "on", "condition": condition, "task": 0, "start": start,
         "success": success, "steps": 9, "commit": "0123456"}
        for arm, success in successes.items()
        for seed in (1, 2)
        for condition in ablation.ALL_SUBSETS
        for start in range(3)
    ]  # fmt: skip
    return pd.DataFrame(found)


def test_an_objective_is_compared_with_its_control():
    rows = subset_rows(robust=1, robult=1, tenth=0, robult_tenth=1)
    rows.loc[(rows.arm == "robult") & (rows.condition == "C1:depth"), "success"] = 0
    text = ablation.page(rows)
    cells = {line.split(" |")[0]: line.split("|")[2:-1] for line in text.splitlines() if line[0:1] == "|"}
    mean, worst = (cells[f"| {name} of the 15 subsets, against the control"] for name in ("mean", "worst"))
    assert [cell.strip() for cell in mean] == [
        "",
        "-7 (-7 to -7)",
        "-100 (-100 to -100)",
        "+100 (+100 to +100)",
    ]
    assert worst[1].strip() == "-100 (-100 to -100)"
    assert cells["| only depth left, announced"][1].strip().startswith("0/6")
    assert cells["| all modalities, masks on"][3].strip().startswith("6/6")


def test_what_was_run_by_one_arm_alone_is_not_compared():
    rows = subset_rows(robust=1, robult=1)
    assert ablation.compared(rows, "robult", "tenth") is None
    half = rows[(rows.arm == "robust") | (rows.condition != "C1:depth")]
    assert ablation.compared(half, "robult", "robust") is None


def test_the_objectives_run_the_cells_of_the_protocol_and_their_control_too(monkeypatch, tmp_path):
    arms = {arm.name: arm for arm in ablation.ARMS}
    ran: list[str] = []
    monkeypatch.setattr(ablation, "_call", ran.extend)
    monkeypatch.setattr(ablation, "_rows_of", lambda *_: rows(robust_1=[1]))

    def asked(*names: str) -> str:
        ran.clear()
        options = ablation.Options(output=tmp_path, arms=list(names))
        ablation._evaluate(options, ablation.arm_preset(robust()), robust(), 1, tmp_path)
        return " ".join(ran)

    assert all(cell in asked("robust", "rlbind") for cell in arms["rlbind"].cells)
    assert "C6:" not in asked("robust")
    assert set(arms["robult_tenth"].cells) == set(arms["tenth"].cells)
    groups = Counter(condition.partition(":")[0] for condition in arms["robult"].cells)
    assert groups == {"C1": 15, "C3": 3, "C6": 4}
    assert set(arms["robust"].cells) > {*ablation.ANNOUNCED, *ablation.UNANNOUNCED}
    assert arms["full"].cells == ablation.SHORT


def test_rows_of_the_same_episode_are_replaced(tmp_path):
    path = tmp_path / "rows.csv.gz"
    ablation._append(path, rows(robust_1=[1, 1]))
    ablation._append(path, rows(robust_1=[0], full_1=[1]))
    found = ablation.read(path)
    assert found[found.arm == "robust"].success.tolist() == [0, 1]
    assert len(found) == 3


def test_rows_have_the_commit_of_their_evaluation_and_a_resumed_run_cannot_relabel_them(tmp_path):
    folder = tmp_path / "eval/seed-1/robust-on"
    synthetic_run(folder, texts=["C0"], calls=[MadeWith("t", commit="0123456789ab")] * 2)
    assert set(ablation._rows_of(folder, robust(), 1, "on").commit) == {"0123456789ab"}
    ablation._same_commit(tmp_path, "0123456789ab")
    with pytest.raises(CommandError, match=r"robust-on.*0123456789ab.*ba9876543210.*--output"):
        ablation._same_commit(tmp_path, "ba9876543210")
    synthetic_run(folder, texts=["C0"], calls=[MadeWith("t", commit=c) for c in ("0123456789ab", "ba98")])
    with pytest.raises(CommandError, match=r"0123456789ab and ba98.*Remove"):
        ablation._rows_of(folder, robust(), 1, "on")


def test_programs_are_those_of_this_environment(capfd):
    ablation._call([sys.executable, "-c", "print('by path')"])
    assert "by path" in capfd.readouterr().out
    with pytest.raises(CommandError, match="code 3"):
        ablation._call([ablation.installed_program("python"), "-c", "raise SystemExit(3)"])


def test_a_further_seed_takes_the_shared_stages_whole(tmp_path):
    """Also where it was interrupted while it took them."""
    first, second = tmp_path / "seed-1", tmp_path / "seed-2"
    for stage in ablation.SHARED:
        (first / stage).mkdir(parents=True)
        (first / stage / "weights").write_text(stage)
        (first / "state").mkdir(exist_ok=True)
        (first / "state" / f"{stage}.json").write_text("{}")
    (second / ablation.SHARED[0]).mkdir(parents=True)  # of an interrupted start
    ablation._share_stages(first, second)
    for stage in ablation.SHARED:
        assert (second / stage / "weights").read_text() == stage
        assert (second / "state" / f"{stage}.json").is_file()
