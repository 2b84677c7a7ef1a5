"""LeRobot's own robot client against the server, each a process: chunks, a kill and a return, and abuse."""

from __future__ import annotations

import json
import math
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import lora
import pytest
from lerobot.transport import services_pb2, services_pb2_grpc
from lerobot.transport.utils import send_bytes_in_chunks
from processes import as_options, environment, free_port, wait_until
from tiny_policies import save_ours
from tiny_policy import canonical_batch

pytestmark = [pytest.mark.slow, pytest.mark.timeout(500)]

#: LeRobot's client as ``python -m`` starts it. It finds robots by their distributions' names; the tests' arm
#: has none.
ARM = "import fake_arm, runpy"
CLIENT = "runpy.run_module('lerobot.async_inference.robot_client', run_name='__main__')"


class Server(NamedTuple):
    """A server that runs."""

    process: subprocess.Popen[bytes]
    log: Path
    port: int
    checkpoint: Path

    def said(self, words: str) -> int:
        """How often it has said something."""
        return self.log.read_text().count(words)


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    """One server for all tests, whatever is done to it, with an adapter checkpoint."""
    root = tmp_path_factory.mktemp("serve")
    full = save_ours(root / "policies") / "ours"
    checkpoint = lora.saved(lora.trained(lora.stage_two(full), canonical_batch(), 1), root / "adapters")
    for file in full.glob("policy_*"):
        shutil.copy(file, checkpoint)
    port, log = free_port(), root / "server.log"
    words = [
        "-m", "multismolvla_run.serve.command", f"--policy.path={checkpoint}", "--policy.device=cpu",
        f"--port={port}", "--host=127.0.0.1",
    ]  # fmt: skip
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, *words], cwd=root, env=environment(), stdout=file, stderr=subprocess.STDOUT
        )
    try:
        wait_until(lambda: f"at 127.0.0.1:{port}" in log.read_text(), process, log)
        yield Server(process, log, port, checkpoint)
    finally:
        process.kill()
        process.wait()


@contextmanager
def client(server: Server, folder: Path, arm: str = ARM, **other: Any) -> Iterator[subprocess.Popen[bytes]]:
    """LeRobot's robot client; its log and the arm's report are in ``folder``."""
    folder.mkdir()
    options = {
        "robot.type": "fake_arm", "robot.id": "test", "robot.report": folder / "report.json",
        "server_address": f"127.0.0.1:{server.port}", "policy_type": "multismolvla", "task": "push",
        "pretrained_name_or_path": server.checkpoint, "actions_per_chunk": 4, "fps": 10, **other,
    }  # fmt: skip
    with (folder / "client.log").open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", f"{arm}; {CLIENT}", *as_options(options)],
            cwd=folder, env=environment(), stdout=file, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def five_chunks(server: Server, process: subprocess.Popen[bytes], folder: Path) -> None:
    before = server.said("Action chunk #")
    wait_until(lambda: server.said("Action chunk #") >= before + 5, process, folder / "client.log")


def test_a_client_that_is_killed_comes_back(server, tmp_path):
    with client(server, tmp_path / "first") as first:
        five_chunks(server, first, tmp_path / "first")
        first.send_signal(signal.SIGKILL)
        assert first.wait() == -signal.SIGKILL
    with client(server, tmp_path / "second") as second:
        five_chunks(server, second, tmp_path / "second")
        wait_until((tmp_path / "second/report.begun").exists, second, tmp_path / "second/client.log")
        second.send_signal(signal.SIGINT)
        wait_until((tmp_path / "second/report.json").exists, server.process, server.log)
    told = json.loads((tmp_path / "second/report.json").read_text())["actions"]
    assert told
    assert all(math.isfinite(value) for action in told for value in action.values())
    assert server.said("takes the place of") >= 1
    assert "image_depth" in server.log.read_text().partition("Ignored")[0]  # uint16 depth is read
    assert not server.said("Refused from")


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"pretrained_name_or_path": "somebody/else"}, "asks for the policy 'somebody/else'"),
        ({"arm": f"{ARM}; fake_arm.FakeArm.pictures = {{'top': (64, 64, 3)}}"}, "declares none of them"),
    ],
    ids=["path", "features"],
)
def test_a_client_that_the_policy_is_not_for_ends_and_is_told(asked, words, server, tmp_path):
    with client(server, tmp_path / "other", **asked) as process:
        process.wait(timeout=400)
    assert server.said(words) == 1
    assert words in (tmp_path / "other/client.log").read_text()
    assert not (tmp_path / "other/report.begun").exists()
    assert server.process.poll() is None


def test_blind_the_arm_stays_where_its_last_action_has_led_it(server, tmp_path):
    folder, said = tmp_path / "blind", "No sensor is left (on_blind=hold)"
    before = server.said(said)
    # an observation when all actions are done: of the four of a plan the first is that of the step before
    with client(server, folder, **{"robot.blind_from": 20, "chunk_size_threshold": 0}) as process:
        wait_until(lambda: server.said(said) > before, process, folder / "client.log")
        five_chunks(server, process, folder)
        process.send_signal(signal.SIGINT)
        wait_until((folder / "report.json").exists, server.process, server.log)
    actions = json.loads((folder / "report.json").read_text())["actions"]
    last = next(n for n, action in enumerate(actions) if action == actions[-1])
    assert len(actions) - last > 10
    assert all(action == actions[last] for action in actions[last:])
    assert last > 0
    assert last % 3 == 0, "the end of a plan, and not a row before it"


class Harm:
    """Writes a file when it is read by ``pickle.loads``."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.file}",)


def test_hostile_bytes_are_named_and_nothing_is_executed(server, tmp_path):
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        stub = services_pb2_grpc.AsyncInferenceStub(channel)
        hostile = pickle.dumps(Harm(tmp_path / "harm"))
        noise = os.urandom(5000)
        stub.Ready(services_pb2.Empty())
        for data, words in ((hostile, "posix.system"), (noise, "5000 bytes cannot be read")):
            with pytest.raises(grpc.RpcError, match=words):
                stub.SendPolicyInstructions(services_pb2.PolicySetup(data=data))
            with pytest.raises(grpc.RpcError, match=words):
                stub.SendObservations(send_bytes_in_chunks(data, services_pb2.Observation))
            assert server.said(words) == 2
    with socket.create_connection(("127.0.0.1", server.port)) as raw:
        raw.sendall(noise)
    assert not (tmp_path / "harm").exists()
    pickle.loads(hostile)  # it would have been
    assert (tmp_path / "harm").exists()
    assert "Traceback" not in server.log.read_text()
    with client(server, tmp_path / "after") as process:
        five_chunks(server, process, tmp_path / "after")


#: A memo of 2 GiB for nothing; a tuple in a tuple, and so on, and one of twice the other, each as a key; and
#: a function that is told to call itself, and is called.
MEMO = b"\x80\x04Nr\x00\x00\x00\x08."
NESTED = b"\x80\x04})" + b"\x85" * 200_000 + b"Ns."
DOUBLED = b"\x80\x04})\x94" + b"".join(b"h%c\x86\x94" % n for n in range(64)) + b"Ns."
CALLS_ITSELF = b"\x80\x04\x8c\x16numpy._core.multiarray\x8c\x06scalar\x93\x94(h\x00)}Ntb)R."


def test_small_messages_that_ask_for_much_cost_the_server_nothing(server, tmp_path):
    def peak() -> int:
        """Memory (bytes) that the server ever had."""
        status = Path(f"/proc/{server.process.pid}/status").read_text()
        return 1024 * int(status.partition("VmHWM:")[2].split()[0])

    before = peak()
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        stub = services_pb2_grpc.AsyncInferenceStub(channel)
        stub.Ready(services_pb2.Empty())
        for data, words in (
            (MEMO, "LONG_BINPUT"), (NESTED, "10000 opcodes"), (DOUBLED, "got `tuple`"),
            (CALLS_ITSELF, "names stand for"),
        ):  # fmt: skip
            with pytest.raises(grpc.RpcError, match=words):
                stub.SendPolicyInstructions(services_pb2.PolicySetup(data=data))
            with pytest.raises(grpc.RpcError, match=words):
                stub.SendObservations(send_bytes_in_chunks(data, services_pb2.Observation))
            assert server.said(words) == 2
    assert peak() < before + 2**30
    with client(server, tmp_path / "after") as process:
        five_chunks(server, process, tmp_path / "after")


def test_the_server_stops_when_it_is_asked(server):
    """Last, as it ends the server of this module."""
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(timeout=60) == 130
    assert server.said("Stopped.") == 1
