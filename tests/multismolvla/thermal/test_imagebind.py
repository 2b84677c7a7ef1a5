"""ImageBind's branches reproduce the recorded numbers and inventories, and refuse wrong files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from nearness import assert_near
from safetensors.torch import load_file, save_file
from tiny_imagebind import write_tiny_imagebind
from torch import Tensor

from multismolvla import weights
from multismolvla.fourm.embeddings import IMAGENET_MEAN, IMAGENET_STD, normalise_rgb
from multismolvla.thermal.imagebind import (
    CLIP_MEAN,
    CLIP_STD,
    ImageBindHead,
    ImageBindThermal,
    ImageBindVision,
)

BRANCHES = {"vision": ImageBindVision, "thermal": ImageBindThermal}


@pytest.fixture(scope="module")
def recorded(golden: Path) -> dict[str, Tensor]:
    return load_file(golden / "imagebind_tiny.safetensors")


@pytest.fixture(scope="module")
def recorded_folder(recorded, tmp_path_factory) -> Path:
    """The recorded weights in the official layout."""
    folder = tmp_path_factory.mktemp("golden")
    state = {k.removeprefix("state."): v for k, v in recorded.items() if k.startswith("state.")}
    weights.write(folder, {"vision_num_heads": 4, "thermal_num_heads": 4}, state)
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    return write_tiny_imagebind(tmp_path_factory.mktemp("tiny"))


def edited(folder: Path, target: Path, change) -> Path:
    """A copy of a checkpoint with other tensors."""
    state = load_file(folder / "model.safetensors")
    target.mkdir()
    (target / "config.json").write_bytes((folder / "config.json").read_bytes())
    save_file({k: v.contiguous() for k, v in change(state).items()}, target / "model.safetensors")
    return target


# ---------------------------------------------------------------- numbers


@pytest.mark.golden
@pytest.mark.parametrize(
    "gradients", [False, True]
)  # PyTorch's attention has a path of its own without gradients
@pytest.mark.parametrize("branch", ["vision", "thermal"])
def test_recorded_numbers(recorded, recorded_folder, branch: str, gradients: bool) -> None:
    model = BRANCHES[branch].from_pretrained(recorded_folder).requires_grad_(gradients)
    images = recorded[f"{branch}.in.u8"].float() / 255
    pixels = normalise_rgb(images) if branch == "vision" else images
    with torch.set_grad_enabled(gradients):
        results = {
            "trunk_in": model.tokens(pixels)[:, ::7],
            "trunk_out": model.rows(images)[:, ::7],
            "trunk_out_ln": model.rows(images, "norm")[:, ::7],
            "projected": model.project(pixels),
            "embedding": model.embed(pixels),
        }
    for name, value in results.items():
        assert_near(value.detach(), recorded[f"{branch}.out.{name}"])


@pytest.mark.golden
@pytest.mark.parametrize(
    ("name", "statistics"), [("imagenet", (IMAGENET_MEAN, IMAGENET_STD)), ("clip", (CLIP_MEAN, CLIP_STD))]
)
def test_normalisation(recorded, name: str, statistics) -> None:
    images = recorded["vision.in.u8"].float() / 255
    probe = normalise_rgb(images, *statistics)[:, :, :2, :8]
    assert_near(probe, recorded[f"vision.in.{name}_norm_probe"], 1e-6)


@pytest.mark.golden
@pytest.mark.parametrize("branch", ["vision", "thermal"])
def test_official_inventory(golden: Path, branch: str) -> None:
    inventory = json.loads((golden / "official_keys" / f"imagebind_huge_{branch}.json").read_text())
    with torch.device("meta"):
        model = BRANCHES[branch]()
    built = {key: list(tensor.shape) for key, tensor in model.state_dict().items()}
    assert built == {key: shape for key, (_, shape) in inventory["tensors"].items()}


def test_epsilons() -> None:
    """The recorded numbers are too coarse to tell 1e-6 from 1e-5 in rows of unit size."""
    for cls in BRANCHES.values():
        with torch.device("meta"):
            model = cls(40, 1, 4, 24)
        found = {n: m.eps for n, m in model.named_modules() if isinstance(m, torch.nn.LayerNorm)}
        stem = found.pop("modality_preprocessors.thermal.rgbt_stem.norm_layer", 1e-5)
        assert stem == 1e-5
        assert set(found.values()) == {1e-6}


def test_a_still_is_a_film_of_two_equal_frames(tiny) -> None:
    vision = ImageBindVision.from_pretrained(tiny)
    stem = vision.modality_preprocessors["vision"].rgbt_stem
    pixels = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    film = pixels[:, :, None].expand(-1, -1, 2, -1, -1)
    expected = F.conv3d(film, stem.proj[1].weight, stride=(2, 14, 14)).flatten(2).transpose(1, 2)
    assert_near(stem(pixels), expected)


def test_each_stored_tensor_counts(tiny) -> None:
    """No tensor of the file is read and then forgotten (bias_k and bias_v are the classical ones)."""
    image = torch.rand(1, 1, 224, 224, generator=torch.Generator().manual_seed(0))
    for branch, cls in BRANCHES.items():
        model = cls.from_pretrained(tiny)
        pixels = image.expand(-1, cls.channels, -1, -1)
        clean = model.embed(pixels)
        for key, tensor in model.state_dict().items():
            before = tensor.clone()
            # Not by a constant, which the norms behind would take out again.
            tensor.add_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(1)))
            changed = not torch.allclose(model.embed(pixels), clean, atol=1e-6)
            assert changed, f"{branch}: {key}"
            tensor.copy_(before)
        assert torch.equal(model.embed(pixels), clean)


def test_embedding_uses_clip_statistics_and_rows_imagenet(tiny) -> None:
    vision = ImageBindVision.from_pretrained(tiny)
    image = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    assert torch.equal(vision.embedding(image), vision.embed(normalise_rgb(image, CLIP_MEAN, CLIP_STD)))
    assert torch.equal(vision.rows(image), vision.trunk_rows(normalise_rgb(image)))


def test_lower_precision(tiny) -> None:
    image = torch.rand(1, 1, 224, 224, generator=torch.Generator().manual_seed(0))
    full = ImageBindThermal.from_pretrained(tiny).rows(image)
    half = ImageBindThermal.from_pretrained(tiny, dtype=torch.bfloat16).rows(image)
    assert half.dtype == torch.bfloat16
    assert (half.float() - full).abs().mean() < 0.05 * full.std()


# ---------------------------------------------------------------- files


def test_only_the_branch_is_read(tiny, tmp_path) -> None:
    """The other branch may be damaged or absent: its tensors are never looked at."""
    damaged = edited(
        tiny,
        tmp_path / "damaged",
        lambda s: {k: v * float("nan") if ".vision." in k else v for k, v in s.items()},
    )
    ImageBindThermal.from_pretrained(damaged)
    thermal_only = edited(tiny, tmp_path / "part", lambda s: {k: v for k, v in s.items() if ".thermal." in k})
    ImageBindThermal.from_pretrained(thermal_only)
    with pytest.raises(ValueError, match="no vision branch"):
        ImageBindVision.from_pretrained(thermal_only)
    with pytest.raises(ValueError, match="modality_preprocessors.vision.cls_token' holds NaN"):
        ImageBindVision.from_pretrained(damaged)


def test_the_head_alone(tiny, tmp_path) -> None:
    slim = edited(tiny, tmp_path / "slim", lambda s: {k: v for k, v in s.items() if "heads.vision" in k})
    head = ImageBindHead.from_pretrained(slim)
    whole = ImageBindVision.from_pretrained(tiny).head
    assert torch.equal(head.projection, whole.projection)
    assert torch.equal(head.norm.weight, whole.norm.weight)
    with pytest.raises(ValueError, match="no thermal branch"):
        ImageBindHead.from_pretrained(slim, "thermal")


@pytest.mark.parametrize("wrapped", [False, True])
def test_the_official_pickle(tiny, tmp_path, wrapped: bool) -> None:
    state = load_file(tiny / "model.safetensors")
    path = tmp_path / "imagebind_huge.pth"
    torch.save({"state_dict": state} if wrapped else state, path)
    image = torch.rand(1, 1, 224, 224, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="thermal_num_heads"):
        ImageBindThermal.from_pretrained(path)
    (tmp_path / "config.json").write_text((tiny / "config.json").read_text())
    model = ImageBindThermal.from_pretrained(path)
    assert torch.equal(model.rows(image), ImageBindThermal.from_pretrained(tiny).rows(image))


def test_a_pickle_that_could_run_code_is_not_opened(tmp_path) -> None:
    path = tmp_path / "imagebind_huge.pth"
    torch.save(ImageBindThermal(32, 1, 4, 24), path)
    with pytest.raises(ValueError, match="cannot be read as plain weights"):
        ImageBindThermal.from_pretrained(path)


def test_a_pickle_named_like_safetensors(tiny, tmp_path) -> None:
    torch.save(load_file(tiny / "model.safetensors"), tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="looks like a pickle"):
        ImageBindThermal.from_pretrained(tmp_path)


def test_a_truncated_file(tiny, tmp_path) -> None:
    content = (tiny / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="truncated"):
        ImageBindThermal.from_pretrained(tmp_path)
    torch.save(load_file(tiny / "model.safetensors"), tmp_path / "whole.pth")
    content = (tmp_path / "whole.pth").read_bytes()
    (tmp_path / "half.pth").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"half\.pth"):
        ImageBindThermal.from_pretrained(tmp_path / "half.pth")


def test_a_wrong_prefix(tiny, tmp_path) -> None:
    prefixed = edited(tiny, tmp_path / "prefixed", lambda s: {f"model.{k}": v for k, v in s.items()})
    with pytest.raises(ValueError, match="strip the prefix 'model.'"):
        ImageBindThermal.from_pretrained(prefixed)
    with pytest.raises(ValueError, match="strip the prefix 'model.'"):
        ImageBindHead.from_pretrained(prefixed)


def test_a_transformers_conversion(tmp_path) -> None:
    state = {"vision_model.embeddings.cls_token": torch.zeros(1, 1, 1280)}
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"thermal branch"):
        ImageBindThermal.from_pretrained(tmp_path)


def test_the_first_bad_key_is_named(tiny, tmp_path) -> None:
    key = "modality_trunks.thermal.blocks.1.attn.bias_k"
    lacking = edited(tiny, tmp_path / "lacking", lambda s: {k: v for k, v in s.items() if k != key})
    with pytest.raises(ValueError, match=rf"'{key}' is missing"):
        ImageBindThermal.from_pretrained(lacking)
    bent = edited(tiny, tmp_path / "bent", lambda s: s | {key: torch.zeros(1, 1, 7)})
    with pytest.raises(ValueError, match=rf"'{key}' has shape \(1, 1, 7\)"):
        ImageBindThermal.from_pretrained(bent)


def test_a_shortened_official_trunk_is_refused(tmp_path) -> None:
    """At the official width the sizes are official, so a missing block cannot pass as a smaller model."""
    with torch.device("meta"):
        official = ImageBindThermal().state_dict()
    few = {
        k: torch.zeros(v.shape, dtype=torch.float16)
        for k, v in official.items()
        if "blocks." not in k or ".blocks.0." in k
    }
    save_file(few, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"blocks\.1\..*is missing"):
        ImageBindThermal.from_pretrained(tmp_path)


def test_missing_files_and_heads(tiny, tmp_path, monkeypatch) -> None:
    with pytest.raises(FileNotFoundError, match="nothing.pth"):
        ImageBindThermal.from_pretrained(tmp_path / "nothing.pth")
    with pytest.raises(FileNotFoundError, match="model.safetensors"):
        ImageBindThermal.from_pretrained(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match="Licence of nobody/imagebind-huge"):
        ImageBindThermal.from_pretrained("nobody/imagebind-huge")
    with pytest.raises(ValueError, match=" 5 heads"):
        ImageBindThermal(32, 1, 5, 24, 16)
    with pytest.raises(ValueError, match="does not divide"):
        ImageBindVision(40, 1, 4, 24, patch_size=15)


# ---------------------------------------------------------------- pictures


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.zeros(1, 1, 256, 256), "256x256 pixels.*Resize"),
        (torch.zeros(1, 3, 224, 224), r"expected floating \(B, 1, 224, 224\)"),
        (torch.zeros(1, 224, 224), "expected floating"),
        (torch.zeros(1, 1, 224, 224, dtype=torch.uint8), "got uint8"),
        (torch.full((1, 1, 224, 224), 255.0), "Divide 8-bit pictures by 255"),
        (torch.full((1, 1, 224, 224), float("nan")), "from nan to nan"),
    ],
)
def test_wrong_pictures(tiny, image: Tensor, message: str) -> None:
    model = ImageBindThermal.from_pretrained(tiny)
    with pytest.raises(ValueError, match=message):
        model.rows(image)
    with pytest.raises(ValueError, match=message):
        model.embedding(image)


def test_unknown_rows(tiny) -> None:
    with pytest.raises(ValueError, match="'post'.*'trunk', 'norm'"):
        ImageBindVision.from_pretrained(tiny).rows(torch.zeros(1, 3, 224, 224), "post")


def test_an_empty_batch(tiny) -> None:
    assert ImageBindThermal.from_pretrained(tiny).rows(torch.zeros(0, 1, 224, 224)).shape == (0, 197, 32)
