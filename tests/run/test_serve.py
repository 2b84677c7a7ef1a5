"""One policy behind LeRobot's robot client: it sees what a roll-out shows it, and who may ask for what."""

from __future__ import annotations

import pickle
import shutil
import socket
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any

import grpc
import lora
import numpy as np
import pytest
import torch
from lerobot.async_inference.configs import PolicyServerConfig
from lerobot.async_inference.helpers import RemotePolicyConfig, TimedAction, TimedObservation
from lerobot.rollout.inference.sync import SyncInferenceEngine
from lerobot.transport import services_pb2, services_pb2_grpc
from lerobot.transport.utils import send_bytes_in_chunks
from lerobot.utils.feature_utils import build_dataset_frame, hw_to_dataset_features
from processes import free_port
from tiny_policies import save_deriving, save_ours
from tiny_policy import SIDE, canonical_batch, chunk

from multismolvla.fourm import MINI_DOMAINS
from multismolvla.health import Cause
from multismolvla.modalities import MODALITIES
from multismolvla.system.command import CommandError, parse_options
from multismolvla_run.serve.command import ServeOptions, main, serve, split_words
from multismolvla_run.serve.pinned import PinnedPolicy, readable_features

JOINTS = {f"s{i}.pos": float for i in range(8)}
ACTIONS = [f"a{i}.pos" for i in range(7)]
#: A robot whose front camera is not called as the policy's, with one more, and none as large as in training.
ROBOT: dict[str, Any] = JOINTS | {
    "front": (48, 96, 3), "front_depth": (48, 96, 1), "front_seg": (48, 96, 3), "image2": (SIDE, SIDE, 3),
    "top": (30, 40, 3),
}  # fmt: skip
RENAMED = {
    f"observation.images.front{stream}": f"observation.images.image{stream}"
    for stream in ("", "_depth", "_seg")
}


def seen(number: int = 0, **values: Any) -> dict[str, Any]:
    """What the robot observes; depth in millimetres, ids in red as in this project's PNGs."""
    rng = np.random.default_rng(number)
    ids = np.zeros((48, 96, 3), np.uint8)
    ids[..., 0] = rng.integers(0, 8, (12, 24)).repeat(4, 0).repeat(4, 1)
    cameras = {name: shape for name, shape in ROBOT.items() if name not in JOINTS}
    pictures = {name: rng.integers(0, 256, shape, dtype=np.uint8) for name, shape in cameras.items()}
    depth = rng.integers(300, 9000, (48, 96, 1), dtype=np.uint16)
    joints = {name: 0.1 * i + number for i, name in enumerate(JOINTS)}
    return {**joints, **pictures, "front_depth": depth, "front_seg": ids, "task": "push", **values}


def dark(number: int = 0) -> dict[str, Any]:
    """The same without a picture, as a guarded camera gives it."""
    there = seen(number)
    return there | {k: np.zeros_like(v) for k, v in there.items() if isinstance(v, np.ndarray)}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return save_ours(tmp_path_factory.mktemp("policies")) / "ours"


@pytest.fixture
def pinned(request, checkpoint, tmp_path) -> PinnedPolicy:
    computes = getattr(request, "param", "") == "thermal of RGB"
    return PinnedPolicy.load(save_deriving(tmp_path, checkpoint.parent) if computes else str(checkpoint))


class Client:
    """LeRobot's client without its robot: the same calls with the same bytes."""

    def __init__(self, port: int, path: str) -> None:
        alone = [("grpc.use_local_subchannel_pool", 1)]  # or the clients of a process share a connection
        self.channel = grpc.insecure_channel(f"127.0.0.1:{port}", alone)
        self.stub = services_pb2_grpc.AsyncInferenceStub(self.channel)
        self.path = path

    def ready(self) -> None:
        self.stub.Ready(services_pb2.Empty())

    def instruct(self, **other: Any) -> None:
        asked: dict[str, Any] = {
            "policy_type": "multismolvla", "pretrained_name_or_path": self.path,
            "lerobot_features": hw_to_dataset_features(ROBOT, "observation", use_video=False),
            "actions_per_chunk": 3,
        }  # fmt: skip
        data = pickle.dumps(RemotePolicyConfig(**asked | other))
        self.stub.SendPolicyInstructions(services_pb2.PolicySetup(data=data))

    def observe(self, values: dict[str, Any], step: int = 0, must_go: bool = True) -> None:
        self.send(pickle.dumps(TimedObservation(1.0, step, values, must_go)))

    def send(self, data: bytes) -> None:
        self.stub.SendObservations(send_bytes_in_chunks(data, services_pb2.Observation))

    def actions(self) -> list[TimedAction]:
        data = self.stub.GetActions(services_pb2.Empty()).data
        return pickle.loads(data) if data else []


@contextmanager
def refused(code: grpc.StatusCode, *words: str) -> Iterator[None]:
    with pytest.raises(grpc.RpcError) as error:
        yield
    assert error.value.code() is code
    for word in words:
        assert word in error.value.details()


INVALID, OTHERS = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION


@pytest.fixture
def connect(pinned, tmp_path, monkeypatch) -> Iterator[Callable[[], Client]]:
    """Makes clients of a server in this process."""
    monkeypatch.chdir(tmp_path)  # importing LeRobot's server makes a folder `logs`
    from multismolvla_run.serve.server import PinnedPolicyServer

    server = grpc.server(futures.ThreadPoolExecutor(4))
    servicer = PinnedPolicyServer(pinned, PolicyServerConfig(obs_queue_timeout=0.2), RENAMED)
    services_pb2_grpc.add_AsyncInferenceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    clients = []

    def make() -> Client:
        clients.append(Client(port, pinned.path))
        return clients[-1]

    yield make
    for client in clients:
        client.channel.close()
    server.stop(grace=None).wait()


@pytest.fixture
def client(connect) -> Client:
    """A client that may observe."""
    made = connect()
    made.ready()
    made.instruct()
    return made


# ----------------------------------------------------------------------------------------------- what it sees


def test_the_policy_sees_what_a_rollout_shows_it(client, pinned):
    """Depth in uint16 millimetres, ids, pictures of another size and name, and a camera too many."""
    client.observe(seen())
    torch.manual_seed(0)
    actions = client.actions()
    served = pinned.policy.last_look().inputs

    features = hw_to_dataset_features(ROBOT, "observation", use_video=False)
    names = hw_to_dataset_features(dict.fromkeys(ACTIONS, float), "action")
    pre, post = pinned.processors(RENAMED)
    engine = SyncInferenceEngine(
        policy=pinned.policy, preprocessor=pre, postprocessor=post, dataset_features=features | names,
        ordered_action_keys=ACTIONS, task="push", device="cpu", robot_type="",
    )  # fmt: skip
    engine.reset()
    torch.manual_seed(0)
    first = engine.get_action(build_dataset_frame(features, seen(), "observation"))
    assert served.fingerprint() == pinned.policy.last_look().inputs.fingerprint()
    assert set(served.values) == {MINI_DOMAINS[m] for m in ("rgb", "depth", "seg")}
    assert [action.timestep for action in actions] == [0, 1, 2]
    assert all(action.action.shape == (7,) for action in actions)
    torch.testing.assert_close(actions[0].action, first)


def test_depth_reaches_the_policy_in_millimetres(client, pinned):
    client.observe(seen(front_depth=np.full((48, 96, 1), 1500, np.uint16)))
    assert client.actions()
    once = pinned.policy.last_look().inputs.fingerprint()[MINI_DOMAINS["depth"]]
    client.observe(seen(front_depth=np.full((48, 96, 1), 300, np.uint16)), step=3)
    assert client.actions()
    assert pinned.policy.last_look().inputs.fingerprint()[MINI_DOMAINS["depth"]] != once


@pytest.mark.parametrize(("step", "row"), [(0, 0), (2, 2), (50, 2)], ids=["at once", "later", "at its end"])
def test_blind_it_holds_what_the_robot_does_at_that_step(step, row, client, pinned):
    """And nothing that the robot never got: the policy plans four actions, and sends three."""
    client.observe(seen())
    sent = client.actions()
    client.observe(dark(), step)
    held = client.actions()
    assert [action.timestep for action in held] == [step, step + 1, step + 2]
    assert all(torch.equal(action.action, sent[row].action) for action in held)
    client.observe(dark(1), step + 2)
    assert all(torch.equal(action.action, sent[row].action) for action in client.actions())
    client.observe(seen(), step + 4)
    assert not torch.equal(client.actions()[0].action, sent[row].action)


def test_a_robot_does_not_hold_what_another_one_did(client, connect):
    client.observe(seen())
    assert client.actions()
    next_one = connect()
    next_one.ready()
    next_one.instruct()
    next_one.observe(dark())
    with refused(INVALID, "PolicyStopError", "commanded nothing yet"):
        next_one.actions()


def test_an_adapter_checkpoint_is_served_merged(checkpoint, tmp_path):
    wrapped = lora.trained(lora.stage_two(checkpoint), canonical_batch())
    folder = lora.saved(wrapped, tmp_path / "adapters")
    for file in checkpoint.glob("policy_*"):
        shutil.copy(file, folder)
    served = PinnedPolicy.load(str(folder))
    assert not any("lora" in key for key in served.policy.state_dict())
    batch = canonical_batch()
    wrapped.reset()
    torch.testing.assert_close(chunk(served.policy, batch), chunk(wrapped, batch), atol=1e-5, rtol=1e-4)
    assert served.processors({}).rename_map == {}


def test_options_of_the_policy_can_be_changed(checkpoint):
    assert PinnedPolicy.load(str(checkpoint), overrides=["--health=off"]).policy.config.health == "off"


# -------------------------------------------------------------------------------------------- what it refuses


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"pretrained_name_or_path": "/etc"}, ("'/etc'", "loads no other", "--pretrained_name_or_path=")),
        ({"policy_type": "smolvla"}, ("'smolvla'", "--policy_type=multismolvla")),
        ({"actions_per_chunk": 9}, ("--actions_per_chunk=9", "1 to 4")),
        ({"actions_per_chunk": 0}, ("--actions_per_chunk=0",)),
    ],
    ids=["path", "type", "too many", "none"],
)
def test_what_the_client_asks_for_must_be_what_is_here(asked, words, client, caplog):
    with refused(INVALID, *words):
        client.instruct(**asked)
    assert words[0] in caplog.text
    client.observe(seen())  # what was agreed before holds
    assert client.actions()


@pytest.mark.parametrize(
    ("robot", "words"),
    [
        ({k: v for k, v in ROBOT.items() if k != "s7.pos"}, ("7 numbers", "trained with 8")),
        ({k: v for k, v in ROBOT.items() if k not in JOINTS}, ("0 numbers",)),
        (ROBOT | {"front_depth": (48, 96, 3)}, ("front_depth", "depth", "(H, W, 1)")),
        (JOINTS | {"top": (30, 40, 3)}, ("top", "declares none of them", "--rename_map")),
    ],
    ids=["joints", "no joints", "channels", "cameras"],
)
def test_a_robot_that_the_policy_does_not_fit_is_refused(robot, words, client):
    with refused(INVALID, *words):
        client.instruct(lerobot_features=hw_to_dataset_features(robot, "observation", use_video=False))


def test_what_is_ignored_and_what_is_absent_is_said(pinned, caplog):
    features = hw_to_dataset_features(ROBOT, "observation", use_video=False)
    with caplog.at_level("INFO", "multismolvla_run"):
        kept = readable_features(pinned.policy.config, features, RENAMED)
    assert set(kept) == {"observation.state", "observation.images.image2", *RENAMED}
    ignored, absent = caplog.text.partition("Ignored: ")[2].split(" Absent: ")
    assert ignored == "observation.images.top."
    assert "observation.images.image2_depth" in absent
    assert "observation.images.image_depth" not in absent


def test_a_client_that_names_its_cameras_itself_is_understood(client):
    robot = hw_to_dataset_features(JOINTS | {"top": (30, 40, 3)}, "observation", use_video=False)
    named = {"observation.images.top": "observation.images.image2"}
    client.instruct(lerobot_features=robot, rename_map=named)
    client.observe(seen())
    assert client.actions()


def test_an_observation_that_lacks_what_was_promised_is_refused(client):
    lacking = seen()
    del lacking["image2"]
    with refused(INVALID, "'image2'", "a picture"):
        client.observe(lacking)
    with refused(INVALID, "'s0.pos'", "a number"):
        client.observe(seen(**{"s0.pos": "far"}))
    client.observe(seen())
    assert client.actions()


@pytest.mark.parametrize("data", [b"\x93NUMPY nonsense", pickle.dumps(print)], ids=["random", "hostile"])
def test_bytes_that_are_no_observation_are_refused_by_name(data, client, caplog):
    with refused(INVALID, "MessageError"):
        client.send(data)
    assert "Refused from" in caplog.text
    client.observe(seen())
    assert client.actions()


@pytest.mark.parametrize(
    "value", [{"front": np.zeros((48, 96), np.uint8)}, {"s0.pos": 10**400}], ids=["picture", "number"]
)
def test_a_look_that_fails_is_told_and_the_next_one_is_taken(value, client):
    """Upstream answers with nothing and lets no other observation of that step pass: the arm stands still."""
    client.observe(seen(**value))
    with refused(INVALID, "Error"):
        client.actions()
    client.observe(seen(), must_go=False)
    assert len(client.actions()) == 3
    client.observe(seen(), must_go=False)  # LeRobot's rule: seen already
    assert client.actions() == []


# ---------------------------------------------------------------------------------------- one robot at a time


def test_the_robot_that_comes_last_is_served(client, connect):
    client.observe(seen())
    other = connect()
    with refused(OTHERS, "one robot at a time"):
        other.instruct()
    other.ready()
    with refused(OTHERS, "Start the client again"):
        client.observe(seen())
    with refused(OTHERS):
        client.actions()
    with refused(INVALID, "no policy instructions"):
        other.observe(seen())
    other.instruct()
    assert other.actions() == []  # what the first one observed is gone
    other.observe(seen())
    assert len(other.actions()) == 3


def test_a_robot_that_the_policy_is_not_ready_for_is_told_and_takes_no_place(
    client, connect, pinned, caplog, monkeypatch
):
    def gone() -> None:
        raise FileNotFoundError("the estimator of thermal is gone")

    client.observe(seen())
    other = connect()
    with monkeypatch.context() as here:
        here.setattr(pinned.policy, "reset", gone)
        with refused(INVALID, "FileNotFoundError: the estimator of thermal is gone"):
            other.ready()
    assert "Refused from" in caplog.text
    assert len(client.actions()) == 3
    with refused(OTHERS):
        other.instruct()
    other.ready()
    other.instruct()


def test_a_policy_whose_estimators_are_not_there_is_not_served(checkpoint, tmp_path):
    policy = save_deriving(tmp_path, checkpoint.parent)
    gone = f'--estimator_sources={{"thermal": "{tmp_path / "nowhere"}"}}'
    with pytest.raises(FileNotFoundError, match=r"learned from thermal(?s:.*)missing_estimator=absent"):
        PinnedPolicy.load(policy, overrides=[gone])
    PinnedPolicy.load(policy, overrides=[gone, "--missing_estimator=absent"])


def test_what_is_remembered_of_one_robot_is_not_held_against_the_next(client, connect, pinned):
    """A picture that stays while the robot moves is frozen, unless another robot shows it."""
    still = {name: value for name, value in seen(0).items() if name not in JOINTS}
    front_rgb = list(pinned.policy.config.views).index("image") * len(MODALITIES)

    def cause() -> int:
        return int(pinned.policy.last_look().health.cause[0, front_rgb])

    for step in range(4):
        client.observe(seen(step) | still, 3 * step)  # whenever all that was sent is done
        assert client.actions()
    assert cause() == Cause.FROZEN
    next_one = connect()
    next_one.ready()
    next_one.instruct()
    next_one.observe(seen(2) | still)
    assert next_one.actions()
    assert cause() == Cause.FIT


def test_a_slow_camera_is_not_frozen_while_the_robot_looks_often(client, pinned):
    """LeRobot's client sends every observation once part of its actions are done, the server takes the last.

    The camera has a quarter of the loop's rate, and every third picture comes a step late.
    """
    front_rgb = list(pinned.policy.config.views).index("image") * len(MODALITIES)
    apart = [2, 3, 1, 2, 4, 1, 1, 2, 3, 2] * 2
    for step in accumulate(apart, initial=0):
        shown = {k: v for k, v in seen(step // 4 - (step % 12 == 4)).items() if k not in JOINTS}
        client.observe(seen(step) | shown, step)
        assert client.actions()
        assert pinned.policy.last_look().health.cause[0, front_rgb] == Cause.FIT, step


@pytest.mark.parametrize("pinned", ["thermal of RGB"], indirect=True)
def test_what_the_policy_computes_of_rgb_follows_it_and_is_another_robots_anew(client, connect, pinned):
    pinned.policy.config.refresh = {"thermal": 2}

    def thermal(robot: Client, number: int) -> torch.Tensor | None:
        robot.observe(seen(number), number)
        assert robot.actions()
        return pinned.policy.last_look().inputs.values.get(MINI_DOMAINS["thermal"])

    first, between, second = (thermal(client, number) for number in range(3))
    assert between is None
    assert not torch.equal(first, second)
    next_one = connect()
    next_one.ready()
    next_one.instruct()
    assert torch.equal(thermal(next_one, 0), first), "estimated at its first look, of the same picture"


# ------------------------------------------------------------------------------------------------ the command


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.7", "robot.local", "::2"])
def test_another_host_needs_a_word_of_trust(host, capsys):
    assert main(["--policy.path=x", f"--host={host}"]) == 1
    told = capsys.readouterr().err
    assert f"--host={host}" in told
    assert "--i_trust_this_network" in told
    assert "ssh -L 8080:localhost:8080" in told
    trusted = parse_options(ServeOptions, ["--policy.path=x", f"--host={host}", "--i-trust-this-network"])
    assert trusted.host == host


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "::1"])
def test_this_machine_is_trusted(host):
    assert parse_options(ServeOptions, ["--policy.path=x", f"--host={host}"]).host == host


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--policy.path"),
        (["--policy.path=x", "--port=0"], "--port=0"),
        (["--policy.path=x", "--fps=0"], "--fps=0"),
        (["--policy.path=./nowhere"], "No policy under './nowhere'"),
    ],
)
def test_what_cannot_be_served_is_named(words, message, capsys):
    assert main(words) == 1
    assert message in capsys.readouterr().err


def test_the_policys_options_are_parted_from_the_servers():
    words = ["--policy.path", "a", "--policy.device", "cuda", "--port=9", "--policy.health=off", "--base=b"]
    own, policy = split_words(words)
    assert own == ["--policy.path", "a", "--port=9", "--base=b"]
    assert policy == ["--device", "cuda", "--health=off"]


def test_a_port_that_is_taken_is_named(checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    port = free_port()
    options = ["--host=127.0.0.1", f"--port={port}", f"--policy.path={checkpoint}"]
    with socket.socket() as other:  # as another server's, which would share it
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", port))
        other.listen()
        with pytest.raises(CommandError, match=f"127.0.0.1:{port}: the port is taken"):
            serve(parse_options(ServeOptions, options))
