r"""``multismolvla-serve``: one policy behind LeRobot's robot client.

Example, here and on the robot's computer (which reaches port 8080 through ``ssh -L 8080:localhost:8080``):
    $ multismolvla-serve --policy.path=outputs/policy --policy.device=cuda
    $ python -m lerobot.async_inference.robot_client --server_address=localhost:8080 \
        --policy_type=multismolvla --pretrained_name_or_path=outputs/policy --actions_per_chunk=50 \
        --robot.type=so101_follower --robot.port=/dev/ttyACM0 --task="put the cube into the basket"
"""

from __future__ import annotations

import ipaddress
import logging
import sys
from collections.abc import Sequence
from concurrent import futures
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from multismolvla.system.command import CommandError, entry_point, parse_options
from multismolvla_run.process import terminate_as_interrupt

logger = logging.getLogger(__name__)

#: One for each call of the robot that is served, the rest for those who ask in vain.
_THREADS = 16


@dataclass
class PolicyChoice:
    """Which policy; any other ``--policy.OPTION=VALUE`` changes one of its own, as in ``lerobot-rollout``."""

    path: str = ""  # folder (also one of a training run) or hub id; adapters are merged


@dataclass
class ServeOptions:
    """Options of ``multismolvla-serve``."""

    policy: PolicyChoice = field(default_factory=PolicyChoice)
    base: Path | None = None  # folder of the checkpoint that the adapters stand on, if it was moved
    rename_map: dict[str, str] = field(default_factory=dict)  # key of the robot -> key of the policy
    fps: int = 30  # steps per second of the robot, for the times of the actions
    host: str = "localhost"  # at which address of this machine to listen
    port: int = 8080
    i_trust_this_network: bool = False  # listen elsewhere than at localhost: who reaches it moves the arm

    def __post_init__(self) -> None:
        if not self.i_trust_this_network and not _is_loopback(self.host):
            raise ValueError(
                f"--host={self.host}: LeRobot's protocol has neither passwords nor encryption, so whoever "
                "reaches the port moves the arm. Keep --host=localhost and let the robot's computer come "
                f"through `ssh -L {self.port}:localhost:{self.port} ...`, or say --i_trust_this_network."
            )
        if not 1 <= self.port <= 65535:
            raise ValueError(f"--port={self.port}: expected a number from 1 to 65535.")
        if self.fps < 1:
            raise ValueError(f"--fps={self.fps}: expected at least 1.")
        if not self.policy.path:
            raise ValueError("Which policy? Name its folder or hub id with --policy.path.")


class Words(NamedTuple):
    """A command line in two parts.

    Attributes:
        own: words that `ServeOptions` has.
        policy: options of the policy, without ``policy.``.
    """

    own: list[str]
    policy: list[str]


def split_words(arguments: Sequence[str]) -> Words:
    """Part the server's options from those of the policy, which are known when its type is."""
    words = Words([], [])
    into = words.own
    for word in arguments:
        if word.startswith("-"):
            name = word.partition("=")[0]
            into = words.policy if name.startswith("--policy.") and name != "--policy.path" else words.own
        into.append(word.replace("--policy.", "--", 1) if into is words.policy else word)
    return words


def serve(options: ServeOptions, overrides: Sequence[str] = ()) -> None:
    """Serve until the process is asked to end.

    Args:
        options: of the server.
        overrides: options of the policy, such as ``--device=cuda``.

    Raises:
        CommandError: the address is taken or not this machine's.
        FileNotFoundError, ValueError: the policy cannot be loaded.
    """
    import grpc
    from lerobot.async_inference.configs import PolicyServerConfig
    from lerobot.transport import services_pb2_grpc

    from multismolvla_run.serve.pinned import PinnedPolicy
    from multismolvla_run.serve.server import PinnedPolicyServer

    pinned = PinnedPolicy.load(options.policy.path, base=options.base, overrides=overrides)
    pinned.processors(options.rename_map)  # so that a broken one is told now
    config = PolicyServerConfig(options.host, options.port, options.fps, inference_latency=0.0)
    # without so_reuseport=0 a second server would share the port, and get some of the clients
    server = grpc.server(futures.ThreadPoolExecutor(_THREADS), options=[("grpc.so_reuseport", 0)])
    services_pb2_grpc.add_AsyncInferenceServicer_to_server(
        PinnedPolicyServer(pinned, config, options.rename_map), server
    )
    host = f"[{options.host}]" if ":" in options.host else options.host
    address = f"{host}:{options.port}"
    try:
        server.add_insecure_port(address)
    except RuntimeError as error:
        raise CommandError(
            f"Nothing can listen at {address}: the port is taken, or the address is not this machine's. "
            "Choose another --port or --host."
        ) from error
    server.start()
    logger.info("Serving %s on %s at %s.", options.policy.path, pinned.policy.config.device, address)
    try:
        with terminate_as_interrupt():
            server.wait_for_termination()
    finally:
        server.stop(grace=1).wait()


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return False


@entry_point(
    "multismolvla-serve",
    errors=(CommandError, ValueError, OSError, ImportError),
    interrupted="Stopped.",
    loads="lerobot",
)
def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; exit code 1 a named error, 130 stopped."""
    words = split_words(sys.argv[1:] if arguments is None else arguments)
    serve(parse_options(ServeOptions, words.own), words.policy)
    return 0


if __name__ == "__main__":
    sys.exit(main())
