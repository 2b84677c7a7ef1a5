"""Finding and reading checkpoint files: strict, lazy, without running code; errors say what to do."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from multismolvla import weights
from multismolvla.pretrained import SOURCES

WANTED = {"a.weight": torch.empty(2, 3, device="meta"), "b": torch.empty(4, device="meta")}


def stored() -> dict[str, Tensor]:
    return {
        "a.weight": torch.arange(6.0).view(2, 3),
        "b": torch.ones(4),
        "decoder.unwanted": torch.full((3,), float("nan")),
    }


def write(path: Path, state: dict[str, Tensor]) -> Path:
    torch.save(state, path) if path.suffix == ".pth" else save_file(state, path)
    return path


@pytest.fixture(params=["model.safetensors", "model.pth"])
def path(request, tmp_path: Path) -> Path:
    """A file of each kind that is read."""
    return tmp_path / request.param


# ---------------------------------------------------------------------------------------------------- reading


def test_exactly_the_wanted_tensors_are_read(path) -> None:
    read = weights.read_weights(write(path, stored()), WANTED)
    assert list(read) == list(WANTED)
    assert all(torch.equal(read[key], stored()[key]) for key in WANTED)


def test_what_was_read_does_not_depend_on_the_file(path) -> None:
    read = weights.read_weights(write(path, stored()), WANTED)
    with path.open("r+b") as file:  # in place, as a synchronising tool may do it
        file.write(b"\0" * path.stat().st_size)
    assert all(torch.equal(read[key], stored()[key]) for key in WANTED)


def test_prefix_is_taken_off(path) -> None:
    write(path, {f"ema.{key}": value for key, value in stored().items()})
    assert torch.equal(weights.read_weights(path, WANTED, prefix="ema.")["b"], torch.ones(4))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_dtype_is_converted(path, dtype) -> None:
    read = weights.read_weights(write(path, stored()), WANTED, dtype=dtype)
    assert {t.dtype for t in read.values()} == {dtype}
    assert torch.equal(read["a.weight"].float(), stored()["a.weight"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"b": None}, r"'b' is missing \(2 tensors in the file\).*another model"),
        (
            {"b": None, "model.b": torch.ones(4)},
            r"'b' is missing.*has 'model\.b': strip the prefix 'model\.'",
        ),
        ({"b": torch.ones(5)}, r"'b' has shape \(5,\); the config asks for \(4,\)"),
        ({"b": torch.ones(4, dtype=torch.int32)}, r"'b' is (I32|torch\.int32); expected"),
        ({"b": torch.tensor([1.0, 2.0, float("inf"), 0.0])}, r"'b' holds NaN or infinite"),
        ({"b": torch.tensor([1.0, 2.0, float("nan"), 0.0])}, r"'b' holds NaN or infinite"),
    ],
)
def test_the_first_bad_key_is_named(path, change, message) -> None:
    state = {key: value for key, value in (stored() | change).items() if value is not None}
    with pytest.raises(ValueError, match=message):
        weights.read_weights(write(path, state), WANTED)


def test_names_and_shapes_are_checked_before_the_first_value(tmp_path) -> None:
    """A wrong file of many gigabytes is refused at once: the first tensor's bad values are not even seen."""
    path = write(tmp_path / "x.safetensors", stored() | {"a.weight": torch.full((2, 3), float("nan"))})
    with pytest.raises(ValueError, match="'c' is missing"):
        weights.read_weights(path, WANTED | {"c": torch.empty(1)})


@pytest.mark.parametrize("size", [0, 1, 7, 100, -1])
def test_truncated_files_are_refused(path, size) -> None:
    content = write(path, stored()).read_bytes()
    path.write_bytes(content[:size])
    with pytest.raises(ValueError, match=rf"{path.name} .*(truncated|cannot be read)"):
        weights.read_weights(path, WANTED)


def test_own_check_is_told_with_key(tmp_path) -> None:
    path = write(tmp_path / "x.safetensors", stored())
    with pytest.raises(ValueError, match="'b' is one"):
        weights.read_weights(path, WANTED, check=lambda key, value: "is one" if key == "b" else None)


def test_stored_keys_come_from_the_header(tmp_path) -> None:
    path = write(tmp_path / "x.safetensors", stored())
    assert weights.stored_keys(path) == {"a.weight": (2, 3), "b": (4,), "decoder.unwanted": (3,)}
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ValueError, match="truncated"):
        weights.stored_keys(path)


# ---------------------------------------------------------------------------------------------------- pickles


@pytest.mark.parametrize("protocol", ["zip", 2, 4])
def test_a_pickle_in_place_of_safetensors_is_told_as_such(tmp_path, protocol) -> None:
    path = tmp_path / "model.safetensors"
    if protocol == "zip":
        torch.save(stored(), path)
    else:
        path.write_bytes(pickle.dumps({"a": 1}, protocol=protocol))
    for read in (lambda: weights.read_weights(path, WANTED), lambda: weights.stored_keys(path)):
        with pytest.raises(ValueError, match="pickle.*safetensors"):
            read()


def test_a_large_pickle_is_opened_anew_and_read_the_same(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(weights, "_MAPPED_BYTES", 30)  # between the first and the second tensor's end
    opened = []
    real = weights._unpickle
    monkeypatch.setattr(weights, "_unpickle", lambda path: opened.append(path) or real(path))
    state = {str(i): torch.full((5,), float(i)) for i in range(8)}
    path = write(tmp_path / "x.pth", state)
    read = weights.read_weights(path, state)
    assert all(torch.equal(read[key], state[key]) for key in state)
    assert len(opened) == 5  # once for names and shapes, then for every two tensors


def test_a_number_where_a_tensor_should_be_is_named(tmp_path) -> None:
    path = tmp_path / "x.pth"
    torch.save(stored() | {"b": 3}, path)
    with pytest.raises(ValueError, match="'b'"):
        weights.read_weights(path, WANTED)


def test_state_dict_inside_a_training_checkpoint(tmp_path) -> None:
    path = tmp_path / "x.ckpt"
    torch.save({"state_dict": stored(), "epoch": 3}, path)
    assert torch.equal(weights.read_weights(path, WANTED)["b"], torch.ones(4))


class Malicious:
    """Runs code when unpickled."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self):
        return Path.touch, (self.victim,)


def test_a_pickle_that_runs_code_is_refused(tmp_path) -> None:
    path, victim = tmp_path / "x.pth", tmp_path / "victim"
    torch.save(stored() | {"extra": Malicious(victim)}, path)
    with pytest.raises(ValueError, match=r"x\.pth"):
        weights.read_weights(path, WANTED)
    assert not victim.exists()


@pytest.mark.parametrize("content", [[1, 2], torch.ones(2)])
def test_a_pickle_without_state_dict_is_refused(tmp_path, content) -> None:
    path = tmp_path / "x.pth"
    torch.save(content, path)
    with pytest.raises(ValueError, match="expected a state dict"):
        weights.read_weights(path, WANTED)


# ---------------------------------------------------------------------------------------------------- finding


def test_files_of_a_folder_in_the_order_asked_for(tmp_path) -> None:
    weights.write(tmp_path / "x", {"dim": 1}, stored())
    assert weights.locate(tmp_path / "x") == [tmp_path / "x/config.json", tmp_path / "x/model.safetensors"]
    assert weights.locate(tmp_path / "x", ["model.safetensors"]) == [tmp_path / "x/model.safetensors"]
    assert weights.read_json(tmp_path / "x/config.json") == {"dim": 1}
    assert sorted(p.name for p in (tmp_path / "x").iterdir()) == ["config.json", "model.safetensors"]
    with pytest.raises(FileNotFoundError, match=r"vocab\.txt"):
        weights.locate(tmp_path / "x", ["config.json", "vocab.txt"])


@pytest.mark.parametrize("name", ["nothing", "./a/b", "/a/b", "~/b", "a/b/c"])
def test_neither_folder_nor_hub_id(name, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="neither a folder nor a hub id"):
        weights.locate(name)


@pytest.mark.parametrize("repo", ["EPFL-VILAB/4M-21_XL", "nielsr/imagebind-huge", "somebody/else"])
def test_offline_the_error_says_everything_that_is_needed(repo, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError) as caught:
        weights.locate(repo, revision="v1", local_files_only=True)
    licence = SOURCES[repo].licence if repo in SOURCES else f"read https://huggingface.co/{repo}"
    for part in (
        repo,
        "'v1'",
        "no folder here has that name",
        licence,
        "accept it there",
        "hf auth login",
        f"hf download {repo} config.json",
        "By hand: put config.json and model.safetensors",
    ):
        assert part in str(caught.value), part


@pytest.mark.parametrize(
    ("text", "message"), [("{", "is no JSON"), ("[1]", "holds a list"), ("\udcff", "is no JSON")]
)
def test_damaged_json_is_named(tmp_path, text, message) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=rf"config\.json {message}"):
        weights.read_json(path)


def test_an_interrupted_write_leaves_the_former_files(tmp_path, monkeypatch) -> None:
    weights.write(tmp_path, {"dim": 1}, stored())

    def full_disk(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(weights, "save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        weights.write(tmp_path, {"dim": 2}, stored())
    assert json.loads((tmp_path / "config.json").read_text()) == {"dim": 1}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
