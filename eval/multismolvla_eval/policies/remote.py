"""A policy whose weights are in another process; see :mod:`multismolvla_eval.rollout.server`."""

from __future__ import annotations

import sys
from multiprocessing.connection import Connection
from typing import Any

import torch
from lerobot.processor import TokenizerProcessorStep
from torch import Tensor

from multismolvla_eval.environments import Batch, EnvironmentSource
from multismolvla_eval.policies.interface import EncoderDoor
from multismolvla_eval.policies.lerobot import ProcessedPolicy, draw_noise
from multismolvla_eval.policies.messages import SERVER_GONE, Reply, as_request


class RemotePolicy(ProcessedPolicy):
    """A LeRobot policy that plans ahead, with its processors and its noise here and its weights in the policy server.

    The noise comes from this process's global generator, which every episode seeds, as it does for a policy that is here.

    Args:
        path: of the checkpoint, as the server was told it.
        source: the environment.
        rename_map: as LeRobot's option.
        server: connection to the server.
    """

    def __init__(
        self, path: str, source: EnvironmentSource, rename_map: dict[str, str], server: Connection
    ) -> None:
        super().__init__(path, source, "cpu", rename_map)
        self._load_processors(rename_map)
        for (
            step
        ) in self.preprocessor.steps:  # instructions of all lengths share a batch; what is added is masked
            if isinstance(step, TokenizerProcessorStep):
                step.padding = "max_length"
        self._server = server
        self._facts: dict[str, Any] = self._ask(path)
        self.checkpoint: str = self._facts["checkpoint"]
        self._door: EncoderDoor | None = None
        self._trust: dict[str, float] = {}
        self._first = True

    def describe(self) -> dict[str, Any]:
        """Facts for the manifest; the device is the server's."""
        return {k: v for k, v in self._facts.items() if k != "checkpoint"}

    def reset(self) -> None:
        """Forget the last episode."""
        super().reset()
        self._door, self._first = None, True

    def act(self, batch: Batch) -> Tensor:
        """The actions (n, A) that are executed before the next look."""
        reply: Reply = self._ask(as_request(self.path, batch, draw_noise(self.config), self._first))
        self._trust = reply.trust
        if self._first:
            self._door, self._first = reply.door, False
        return self.postprocessor(torch.from_numpy(reply.actions))

    def at_the_door(self) -> EncoderDoor | None:
        """What the encoder was given at the episode's first look."""
        return self._door

    def trust(self) -> dict[str, float]:
        """How much each modality counted beside the others in the last answer."""
        return self._trust

    def _ask(self, message: Any) -> Any:
        try:
            self._server.send(message)
            return self._server.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            sys.stderr.write("The policy server is gone.\n")
            sys.exit(SERVER_GONE)
