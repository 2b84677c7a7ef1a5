"""ThermalGen's benchmark: its numbers are those of the model; nothing is asserted about time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from thermalgen import ThermalGenBenchmark, compare, draw_curve, evenly, read_pictures, solve
from tiny_thermalgen import write_tiny_thermalgen

from multismolvla.thermal.thermalgen import ThermalGen

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


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


def config(folder: Path, output: Path, **options) -> ThermalGenBenchmark:
    base = {"source": folder / "pictures", "model": str(folder / "model"), "output": output, "size": 32}
    return ThermalGenBenchmark(
        **base | {"methods": ["euler", "heun", "dopri5"], "steps": [8, 1, 2]} | options
    )


@pytest.fixture(scope="module")
def result(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    output = tmp_path_factory.mktemp("result") / "steps"
    return output, draw_curve(config(folder, output, batch_size=2))


def test_the_curve_falls_and_counts_evaluations(result) -> None:
    output, content = result
    written = json.loads((output / "curve.json").read_text())
    assert written["curve"] == content["curve"]
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
    assert content["converged"]["evaluations"] > rows["dopri5", None]["evaluations"]
    assert written["pictures"] == [["0.png", 0], ["1.png", 0], ["2.png", 0]]
    assert all(r["seconds"]["n"] == 3 for r in content["curve"])


def test_solutions_are_what_generate_makes(folder: Path, tmp_path: Path) -> None:
    """Batches and the preparation for equal sizes change nothing."""
    cfg = config(folder, tmp_path, batch_size=2)
    model = ThermalGen.from_pretrained(folder / "model")
    pictures = read_pictures(cfg)
    options = {"steps": 2, "method": "heun", "size": 32, "output_size": (32, 32)}
    own = [model.generate(rgb[None], frames=[frame], **options)[0, 0] for frame, rgb in pictures.items()]
    rgb = torch.cat([(model.preprocess(p[None], 32) + 1) / 2 for p in pictures.values()])
    made = solve(model, rgb, list(pictures), cfg, "heun", 2)
    assert np.abs(torch.stack(own).numpy() - made.thermal).max() < 1e-5


def test_pngs_show_every_setting(result) -> None:
    output, _ = result
    assert sorted(p.name for p in output.iterdir()) == ["contact_sheet.png", "curve.json", "curve.png"]
    page = np.asarray(Image.open(output / "contact_sheet.png").convert("RGB"))
    assert page.shape[1] == 80 + 5 * 132  # RGB, the converged solution, three numbers of steps
    assert np.asarray(Image.open(output / "curve.png").convert("RGB")).std() > 10


def test_reduced_precision_is_compared_with_the_float32_solution(folder: Path, tmp_path: Path) -> None:
    content = draw_curve(
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
    cfg = config(folder, tmp_path / "steps", source=tmp_path / "data", pictures=2)
    pictures = read_pictures(cfg)
    assert list(pictures) == [(0, 1), (1, 1)]
    assert np.abs(pictures[1, 1].permute(1, 2, 0).numpy() * 255 - shown[1, 1]).max() < 1e-3
    with pytest.raises(ValueError, match=r"--camera=wrist: .*\['observation.images.top'\]"):
        read_pictures(config(folder, tmp_path / "x", source=tmp_path / "data", camera="wrist"))


def test_differences() -> None:
    rng = np.random.default_rng(0)
    a = rng.random((40, 30)).astype(np.float32)
    b = np.clip(a + 0.1 * rng.standard_normal(a.shape), 0, 1).astype(np.float32)
    assert compare(a, a) == {"mae": 0, "psnr_db": pytest.approx(120), "ssim": pytest.approx(1)}
    own = compare(b, a)
    assert own["mae"] == pytest.approx(np.abs(a - b).mean(), rel=1e-5)
    assert 15 < own["psnr_db"] < 25
    assert 0 < own["ssim"] < 1


def test_pictures_are_spread() -> None:
    assert evenly(10, 2) == [2, 7]
    assert evenly(3, 8) == [0, 1, 2]


def test_missing_or_foreign_files_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="LeRobotDataset"):
        draw_curve(config(folder, tmp_path / "x", source=folder / "model"))
    (tmp_path / "bad.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"bad\.png is no picture"):
        draw_curve(config(folder, tmp_path / "x", source=tmp_path / "bad.png"))


def test_help_is_light() -> None:
    command = [sys.executable, "-X", "importtime", str(FOLDER / "thermalgen.py"), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "--cfg_scale" in done.stdout
    assert "| torch\n" not in done.stderr
