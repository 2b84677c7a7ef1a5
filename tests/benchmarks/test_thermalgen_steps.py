"""The steps tool: its numbers are those of the model, an interruption loses nothing, bad options name themselves."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from thermalgen_report import compare
from thermalgen_steps import CurveConfig, _spread, main, measure
from tiny_thermalgen import write_tiny_thermalgen

from benchmarks import thermalgen_steps as tool
from multismolvla.thermal.thermalgen import ThermalGen


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model and three pictures of different sizes."""
    root = tmp_path_factory.mktemp("tool")
    write_tiny_thermalgen(root / "model")
    rng = np.random.default_rng(0)
    (root / "pictures").mkdir()
    for i in range(3):
        shape = (40 + 8 * i, 52, 3)
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(root / "pictures" / f"{i}.png")
    (root / "pictures" / "notes.txt").write_text("no picture")
    return root


def config(folder: Path, output: Path, **options) -> CurveConfig:
    base = {"source": folder / "pictures", "model": str(folder / "model"), "output": output, "size": 32}
    return CurveConfig(
        **base | {"methods": ["euler", "heun", "dopri5"], "steps": [8, 1, 2], "device": "cpu"} | options
    )


@pytest.fixture(scope="module")
def result(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    output = tmp_path_factory.mktemp("result") / "steps"
    return output, measure(config(folder, output, batch_size=2))


def test_the_curve_falls_and_counts_evaluations(result) -> None:
    output, content = result
    assert json.loads((output / "curve.json").read_text()) == content
    rows = {(r["method"], r["steps"]): r for r in content["curve"]}
    assert list(rows) == [(m, s) for m in ("euler", "heun") for s in (1, 2, 8)] + [("dopri5", None)]
    for method, stages in (("euler", 1), ("heun", 2)):
        own = [rows[method, s] for s in (1, 2, 8)]
        assert [r["evaluations"] for r in own] == [stages, 2 * stages, 8 * stages]
        for metric, sign in (("mae", -1), ("psnr_db", 1), ("ssim", 1)):
            values = [sign * r[metric]["median"] for r in own]
            assert values == sorted(values), (method, metric)
    assert rows["heun", 8]["mae"]["median"] < rows["euler", 8]["mae"]["median"] < 0.05
    assert rows["dopri5", None]["mae"]["median"] < 1e-3
    assert content["reference"]["evaluations"] > rows["dopri5", None]["evaluations"]
    assert content["pictures"] == ["0.png", "1.png", "2.png"]
    assert all(len(r["seconds"]["per_picture"]) == 3 for r in content["curve"])


def test_pictures_are_those_that_generate_makes(result, folder: Path) -> None:
    """Batches, preparation for equal sizes and kept files change nothing."""
    output, _ = result
    model = ThermalGen.from_pretrained(folder / "model")
    for i in range(3):
        values = np.asarray(Image.open(folder / "pictures" / f"{i}.png"), dtype=np.float32) / 255
        rgb = torch.from_numpy(values).permute(2, 0, 1)[None]
        own = model.generate(
            rgb, frames=[(f"{i}.png", 0)], steps=2, method="heun", size=32, output_size=(32, 32)
        )
        with np.load(output / "work" / "heun-002.npz") as kept:
            assert np.abs(own[0, 0].numpy() - kept["thermal"][i]).max() < 1e-5


def test_pngs_show_every_setting(result) -> None:
    output, _ = result
    assert sorted(p.name for p in output.iterdir()) == [
        "contact_sheet.png",
        "curve.json",
        "curve.png",
        "work",
    ]
    page = np.asarray(Image.open(output / "contact_sheet.png").convert("RGB"))
    assert page.shape == (20 + 132 * 3 * 2, 70 + 132 * 5, 3)
    for row in range(6):
        for column in range(5):
            cell = page[20 + 132 * row :, 70 + 132 * column :][:128, :128]
            assert cell.std() > 10, (row, column)
            assert (cell[..., 0] == cell[..., 1]).all() == (column > 0)
    plot = np.asarray(Image.open(output / "curve.png").convert("RGB"))
    assert plot.std() > 10


def test_interruption_loses_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    made: list[tuple[str, int | None]] = []
    original = tool._generate

    def counting(model, pictures, cfg, method, steps, *rest):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append((method, steps))
        return original(model, pictures, cfg, method, steps, *rest)

    output = tmp_path / "steps"
    arguments = [f"--source={folder / 'pictures'}", f"--model={folder / 'model'}", f"--output={output}"]
    arguments += ["--size=32", "--steps=[1,2]", "--methods=[euler]", "--device=cpu"]
    monkeypatch.setattr(sys, "argv", ["multismolvla-thermalgen", *arguments])
    monkeypatch.setattr(tool, "_generate", counting)
    assert main() == 130
    assert "the same command continues" in capsys.readouterr().err
    assert not (output / "curve.json").exists()
    assert main() == 130  # the third part is asked for again, the first two are not
    assert made == [("dopri5", None), ("euler", 1)]
    monkeypatch.setattr(tool, "_generate", original)
    assert main() == 0
    assert len(json.loads((output / "curve.json").read_text())["curve"]) == 2
    wider = measure(
        config(folder, output, methods=["euler"], steps=[1, 2, 3])
    )  # more settings join what is there
    assert [r["steps"] for r in wider["curve"]] == [1, 2, 3]
    with pytest.raises(FileExistsError, match=r"begun with seed = 0, now it is 5.*--output"):
        measure(config(folder, output, seed=5))
    write_tiny_thermalgen(tmp_path / "other", seed=1)
    with pytest.raises(FileExistsError, match="begun with "):
        measure(config(folder, output, model=str(tmp_path / "other")))


def test_reduced_precision_is_compared_with_the_float32_solution(folder: Path, tmp_path: Path) -> None:
    content = measure(
        config(folder, tmp_path / "half", dtype="bfloat16", methods=["heun"], steps=[8], pictures=1)
    )
    assert 1e-4 < content["curve"][0]["mae"]["median"] < 0.05


def test_lerobot_dataset(folder: Path, tmp_path: Path) -> None:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    picture = {"dtype": "image", "shape": (32, 48, 3), "names": ["height", "width", "channels"]}
    features = {"observation.images.top_thermal": picture, "observation.images.top": picture}
    data = LeRobotDataset.create(
        "local/pictures", fps=10, root=tmp_path / "data", features=features, use_videos=False
    )
    rng = np.random.default_rng(0)
    shown = rng.integers(0, 256, (2, 3, 32, 48, 3), dtype=np.uint8)
    for episode in shown:
        for rgb in episode:
            data.add_frame(
                {"observation.images.top": rgb, "observation.images.top_thermal": 255 - rgb, "task": "look"}
            )
        data.save_episode()
    data.finalize()
    cfg = config(
        folder, tmp_path / "steps", source=tmp_path / "data", pictures=2, steps=[1], methods=["euler"]
    )
    content = measure(cfg)
    assert content["pictures"] == ["episode 0, frame 1", "episode 1, frame 1"]
    model = ThermalGen.from_pretrained(folder / "model")
    rgb = torch.from_numpy(shown[1, 1]).permute(2, 0, 1)[None].float() / 255
    own = model.generate(rgb, frames=[(1, 1)], steps=1, size=32, output_size=(32, 32))
    with np.load(tmp_path / "steps" / "work" / "euler-001.npz") as kept:
        assert np.abs(own[0, 0].numpy() - kept["thermal"][1]).max() < 1e-5
    with pytest.raises(ValueError, match=r"--camera=wrist: .*\['observation.images.top'\]"):
        measure(config(folder, tmp_path / "x", source=tmp_path / "data", camera="wrist"))


def test_differences() -> None:
    rng = np.random.default_rng(0)
    a = rng.random((40, 30)).astype(np.float32)
    b = np.clip(a + 0.1 * rng.standard_normal(a.shape), 0, 1).astype(np.float32)
    assert compare(a, a) == {"mae": 0, "psnr_db": pytest.approx(120), "ssim": pytest.approx(1)}
    metrics = pytest.importorskip("skimage.metrics")
    own = compare(b, a)
    assert own["mae"] == pytest.approx(np.abs(a - b).mean(), rel=1e-5)
    assert own["psnr_db"] == pytest.approx(metrics.peak_signal_noise_ratio(a, b, data_range=1), rel=1e-5)
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1}
    assert own["ssim"] == pytest.approx(metrics.structural_similarity(a, b, **options), rel=1e-4)


def test_pictures_are_spread() -> None:
    assert _spread(10, 2) == [2, 7]
    assert _spread(3, 8) == [0, 1, 2]


@pytest.mark.parametrize(
    "option",
    [
        {"methods": ["rk5"]},
        {"methods": []},
        {"steps": [0]},
        {"pictures": 0},
        {"batch_size": 0},
        {"size": 40},
        {"noise": "batch"},
        {"dtype": "int8"},
        {"tolerance": 0.0},
        {"cfg_scale": 0.5},
        {"cfg_scale": 2.0},
    ],
)
def test_wrong_options_name_themselves(option: dict) -> None:
    with pytest.raises(ValueError, match=f"--{next(iter(option))}="):
        CurveConfig(source=Path("x"), **option)


def test_missing_or_foreign_files_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is no LeRobotDataset .* has no pictures"):
        measure(config(folder, tmp_path / "x", source=folder / "model"))
    (tmp_path / "bad.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"bad\.png is no picture"):
        measure(config(folder, tmp_path / "x", source=tmp_path / "bad.png"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("")
    with pytest.raises(FileExistsError, match="was not made by this command"):
        measure(config(folder, tmp_path / "full"))


def test_help_is_quick_and_complete(help_of) -> None:
    said = help_of("thermalgen_steps", "torch", "diffusers", "lerobot", "matplotlib")
    assert "--methods" in said
    assert "grid points" in " ".join(said.split())
