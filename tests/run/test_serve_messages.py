"""What a robot client sends is read as data: nothing that a message names is executed."""

from __future__ import annotations

import contextlib
import os
import pickle
import pickletools
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_arm import FakeArm, FakeArmConfig
from hypothesis import given, settings
from hypothesis import strategies as st
from lerobot.async_inference import helpers
from lerobot.async_inference.helpers import RemotePolicyConfig, TimedObservation
from lerobot.transport import services_pb2
from lerobot.transport.utils import send_bytes_in_chunks

from multismolvla_run.serve import messages
from multismolvla_run.serve.messages import MessageError, joined, read_instructions, read_observation

#: What the arm observes; one number is NumPy's.
SEEN: dict[str, Any] = FakeArm(FakeArmConfig()).get_observation()
SEEN |= {"s0.pos": np.float32(0.25), "task": "push"}


def observation(**values: Any) -> TimedObservation:
    return TimedObservation(timestamp=12.5, timestep=3, observation=SEEN | values, must_go=True)


def instructions(**values: Any) -> RemotePolicyConfig:
    features = helpers.map_robot_keys_to_lerobot_features(FakeArm(FakeArmConfig()))
    return RemotePolicyConfig(**{
        "policy_type": "multismolvla", "pretrained_name_or_path": "outputs/policy",
        "lerobot_features": features, "actions_per_chunk": 4, **values,
    })  # fmt: skip


@pytest.mark.parametrize("protocol", [4, 5], ids=["python 3.12", "python 3.14"])
def test_an_observation_arrives_as_it_was_sent(protocol):
    read = read_observation(pickle.dumps(observation(), protocol))
    assert type(read) is TimedObservation
    assert (read.timestamp, read.timestep, read.must_go) == (12.5, 3, True)
    assert read.observation.keys() == SEEN.keys()
    for name, value in SEEN.items():
        assert type(read.observation[name]) is type(value)
        np.testing.assert_array_equal(read.observation[name], value)
    assert read.observation["image_depth"].dtype == np.uint16


def test_instructions_arrive_as_lerobots_client_makes_them():
    sent = instructions(rename_map={"a": "b"}, device="cuda")
    read = read_instructions(pickle.dumps(sent))
    assert read.pretrained_name_or_path == "outputs/policy"
    assert (read.actions_per_chunk, read.device, read.rename_map) == (4, "cuda", {"a": "b"})
    assert read.lerobot_features.keys() == sent.lerobot_features.keys()
    depth = read.lerobot_features["observation.images.image_depth"]
    assert (depth["dtype"], tuple(depth["shape"])) == ("image", (64, 64, 1))
    assert read.lerobot_features["observation.state"]["names"] == [f"s{i}.pos" for i in range(8)]


class Calls:
    """Pickles as a call, which whoever reads it makes."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self._call = (function, arguments)

    def __reduce__(self) -> Any:
        return self._call


@pytest.mark.parametrize(
    "call",
    [
        lambda file: Calls(os.system, f"touch {file}"),
        lambda file: Calls(eval, f"open({str(file)!r}, 'w')"),
        lambda file: Calls(subprocess.check_output, ["touch", str(file)]),
        lambda file: Calls(os.mkdir, str(file)),
        lambda file: Calls(np.save, str(file), 1),
        lambda file: Calls(helpers.get_logger, str(file), False),
    ],
    ids=["system", "eval", "subprocess", "mkdir", "numpy", "lerobot"],
)
@pytest.mark.parametrize("place", ["whole", "observation", "instructions"])
def test_a_call_in_a_pickle_is_refused_and_not_made(call, place, tmp_path):
    def message(file: Path) -> bytes:
        harm = call(file)
        if place == "whole":
            return pickle.dumps(harm)
        return pickle.dumps(observation(task=harm) if place == "observation" else instructions(device=harm))

    read = read_instructions if place == "instructions" else read_observation
    with pytest.raises(MessageError, match="nothing of it was executed"):
        read(message(tmp_path / "harm"))
    assert not list(tmp_path.iterdir())
    if call(tmp_path)._call[0] is not helpers.get_logger:
        pickle.loads(message(tmp_path / "harm"))  # it would have been
        assert list(tmp_path.iterdir())


def text(value: str) -> bytes:
    """In pickle's language."""
    return pickle.SHORT_BINUNICODE + bytes([len(value)]) + value.encode()


def named(module: str, name: str) -> bytes:
    """What a name stands for, at the first place of the memo."""
    return pickle.PROTO + b"\x04" + text(module) + text(name) + pickle.STACK_GLOBAL + pickle.MEMOIZE


#: ``setattr(TimedObservation, "get_timestep", 7)``
CHANGES_THE_CLASS = (
    named(helpers.__name__, "TimedObservation") + pickle.NONE + pickle.EMPTY_DICT
    + text("get_timestep") + pickle.BININT1 + b"\x07"
    + pickle.SETITEM + pickle.TUPLE2 + pickle.BUILD + pickle.STOP
)  # fmt: skip


def test_a_pickle_cannot_change_the_programs_own_classes(monkeypatch):
    monkeypatch.setattr(TimedObservation, "get_timestep", TimedObservation.get_timestep)  # puts it back
    with pytest.raises(MessageError, match="cannot be read as TimedObservation"):
        read_observation(CHANGES_THE_CLASS)
    assert callable(TimedObservation.get_timestep)
    pickle.loads(CHANGES_THE_CLASS)  # it would have
    assert TimedObservation.get_timestep == 7


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("numpy._core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "scalar"), ("numpy", "dtype"),
        ("numpy._core.numeric", "_frombuffer"),
    ],
)  # fmt: skip
def test_a_pickle_cannot_change_what_numpys_names_stand_for(module, name):
    """``f.__setstate__((f, (), {}, None))``, after which a ``functools.partial`` calls itself."""
    state = pickle.MARK + pickle.BINGET + b"\0" + pickle.EMPTY_TUPLE + pickle.EMPTY_DICT + pickle.NONE
    changed = named(module, name) + state + pickle.TUPLE + pickle.BUILD
    with pytest.raises(MessageError, match="changes what NumPy's names stand for"):
        read_observation(changed + pickle.STOP)


def test_a_dtype_of_numbers_that_claims_to_hold_objects_is_one_of_numbers():
    """NumPy 2.2 believes the pickle, and fails with errors of its own inside."""
    dtype = Calls(np.dtype, "u8", False, True)
    dtype.__dict__["_call"] += ((3, "|", None, None, None, -1, -1, 63),)
    array = Calls(np.ndarray(0).__reduce__()[0], np.ndarray, (0,), b"b")
    array.__dict__["_call"] += ((1, (1,), dtype, False, bytes(8)),)
    read = read_observation(pickle.dumps(observation(image=array)))
    assert read.observation["image"].dtype == np.uint64
    assert not read.observation["image"].dtype.hasobject
    with pytest.raises(MessageError, match="dtype 'O8'"):
        read_observation(pickle.dumps(observation(image=np.array([None]))))


SHARED = (1, 2)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x80\x04Nr\x07\0\0\0.", "opcode LONG_BINPUT"),
        (b"Np7\n.", "opcode PUT"),
        (b"\x80\x04(\x91.", "opcode FROZENSET"),
        (pickle.dumps(observation(task={(1, 2): 3})), "a key: Expected `str`, got `tuple`"),
        (pickle.dumps(observation(task={"a": 1, SHARED: 2})), "got `tuple`"),
        (pickle.dumps(observation(task=[SHARED, {SHARED: 3}])), "got `tuple`"),
        (pickle.dumps(observation(task=[None] * messages.MOST_OPCODES)), "more than 10000 opcodes"),
        (pickle.dumps(Calls(np.dtype, ((),))), "An array of dtype of type tuple"),
        (pickle.dumps(Calls(np._core.numeric._frombuffer, b"", [], (0,), "C")), "of type list"),
    ],
    ids=["place", "old place", "set", "key", "second key", "shared key", "opcodes", "dtype", "no dtype"],
)  # fmt: skip
def test_what_a_few_bytes_could_do_to_the_server_is_refused(data, message):
    """Small ones, that would do nothing; those that would are sent to a process, in test_serve_processes."""
    with pytest.raises(MessageError, match=message):
        read_observation(data)


def test_a_robot_with_many_cameras_and_joints_is_far_from_these_bounds():
    cameras = {f"camera{n}": np.full((4, 4, 3), n, np.uint8) for n in range(40)}
    joints = {f"joint{n}.pos": np.float32(n) for n in range(100)}
    sent = pickle.dumps(observation(**cameras, **joints))
    assert len(list(pickletools.genops(sent))) < messages.MOST_OPCODES / 2
    read = read_observation(sent).observation
    assert all(np.array_equal(read[name], value) for name, value in (cameras | joints).items())


def test_arrays_are_no_larger_together_than_a_message(monkeypatch):
    """One that is named a thousand times would be a thousand."""
    monkeypatch.setattr(messages, "LARGEST", 3 * 48)
    picture = np.zeros((4, 4, 3), np.uint8)
    names = [f"camera{n}" for n in range(4)]
    sent = TimedObservation(12.5, 3, dict.fromkeys(names[:3], picture))
    assert read_observation(pickle.dumps(sent)).observation.keys() == set(names[:3])
    sent = TimedObservation(12.5, 3, dict.fromkeys(names, picture))
    with pytest.raises(MessageError, match="Arrays of more than 144 bytes"):
        read_observation(pickle.dumps(sent))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "0 bytes cannot be read as TimedObservation"),
        (b"GET / HTTP/1.1\r\n\r\n", "cannot be read"),
        (pickle.dumps(3), "A int was sent"),
        (pickle.dumps(instructions()), "RemotePolicyConfig"),
        (pickle.dumps(TimedObservation(1.0, "3", {})), "Expected `int`, got `str`"),
        (pickle.dumps(TimedObservation(1.0, 3, {4: 5})), "Expected `str`, got `int`"),
    ],
    ids=["nothing", "browser", "number", "other message", "step", "key"],
)
def test_what_is_no_observation_is_named(data, message):
    with pytest.raises(MessageError, match=message):
        read_observation(data)


def test_instructions_of_another_make_are_named():
    sent = instructions()
    del sent.actions_per_chunk
    with pytest.raises(MessageError, match="missing required field `actions_per_chunk`"):
        read_instructions(pickle.dumps(sent))
    features = {"observation.state": {"dtype": "float32"}}
    with pytest.raises(MessageError, match="missing required field `shape`"):
        read_instructions(pickle.dumps(instructions(lerobot_features=features)))


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_random_bytes_are_refused(data):
    with pytest.raises(MessageError):
        read_observation(data)


@settings(deadline=None)
@given(st.data())
def test_a_damaged_observation_is_read_or_refused(data):
    """Bits that a network changed."""
    whole = bytearray(pickle.dumps(observation(image=np.zeros((2, 2, 3), np.uint8), image_depth=None)))
    for place in data.draw(st.lists(st.integers(0, len(whole) - 1), min_size=1, max_size=4)):
        whole[place] = data.draw(st.integers(0, 255))
    with contextlib.suppress(MessageError):
        assert isinstance(read_observation(bytes(whole)), TimedObservation)


def test_a_message_without_end_is_cut_off(monkeypatch):
    monkeypatch.setattr(messages, "LARGEST", 5 * 2**20)
    parts = list(send_bytes_in_chunks(bytes(7 * 2**20), services_pb2.Observation))
    with pytest.raises(MessageError, match="more than 5242880 bytes"):
        joined(parts)
    with pytest.raises(MessageError, match="ended after 4194304 bytes"):
        joined(parts[:2])
    whole = bytes(range(256)) * 12000
    assert joined(send_bytes_in_chunks(whole, services_pb2.Observation)) == whole
