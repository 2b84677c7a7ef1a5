"""LeRobot's policy server for one policy that is chosen here, not by whoever asks.

What differs from lerobot 0.6.1's: messages are read as data (`multismolvla_run.serve.messages`); observations
take the way of ``lerobot-rollout``, so that nothing is resized but by the policy; a client is told what was
wrong with what it sent; and a look that failed may be tried again, where upstream waits for ever.
"""

from __future__ import annotations

import logging
import pickle
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from queue import Empty
from typing import Any, NamedTuple

import grpc
import numpy as np
import torch
from lerobot.async_inference.configs import PolicyServerConfig
from lerobot.async_inference.helpers import TimedAction, TimedObservation
from lerobot.async_inference.policy_server import PolicyServer
from lerobot.policies.utils import prepare_observation_for_inference
from lerobot.transport import services_pb2
from lerobot.utils.constants import OBS_IMAGES, OBS_STR
from lerobot.utils.feature_utils import build_dataset_frame

from multismolvla.modalities import Feature
from multismolvla_eval.policies.lerobot import inference_modes
from multismolvla_run.serve.messages import (
    Instructions,
    MessageError,
    joined,
    read_instructions,
    read_observation,
)
from multismolvla_run.serve.pinned import PinnedPolicy, readable_features

logger = logging.getLogger(__name__)

#: What the policy and its processors raise when they cannot use an observation, or lack a file of theirs.
_UNUSABLE = (ValueError, TypeError, LookupError, ArithmeticError, RuntimeError, OSError)
_LONGEST = 2000  # letters of an error; gRPC sends them in a header


class _NotServedError(ValueError):
    """A call of a client whose turn it is not."""


class _Sent(NamedTuple):
    """What the robot carries out: actions (1, T, A) from a step on, before the post-processor."""

    step: int
    plan: torch.Tensor


class PinnedPolicyServer(PolicyServer):
    """Serves one robot at a time: the one that came last.

    What the policy remembers from look to look it remembers of that robot, and forgets when the next comes.

    Args:
        pinned: the policy.
        config: of LeRobot's server.
        rename_map: key of the robot -> key of the policy.
    """

    # upstream's, and none until the client has said what it observes
    lerobot_features: dict[str, Feature] | None
    preprocessor: Any
    postprocessor: Any

    def __init__(
        self, pinned: PinnedPolicy, config: PolicyServerConfig, rename_map: Mapping[str, str]
    ) -> None:
        super().__init__(config)
        self.policy, self.device = pinned.policy, pinned.policy.config.device
        self._pinned, self._rename_map = pinned, dict(rename_map)
        self._client: str | None = None
        self._sent: _Sent | None = None
        self._policy_lock = threading.Lock()  # held while the policy acts; taken before the other one
        self._client_lock = threading.Lock()  # held for moments, by whatever belongs to one client

    # -- the calls of a client ------------------------------------------------------------------------------

    def Ready(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        """A robot comes, or comes back; it takes the place of the one before."""
        with self._errors_told(context), self._policy_lock, self._client_lock:
            self.policy.reset()
            if self._client is not None:
                logger.info("%s takes the place of %s.", context.peer(), self._client)
            self._client = context.peer()
            self.lerobot_features = self.preprocessor = self.postprocessor = None
            self.last_processed_obs = self._sent = None
            return super().Ready(request, context)

    def SendPolicyInstructions(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        """The robot says what it observes, and which policy it expects."""
        with self._errors_told(context), self._policy_lock, self._client_lock:
            self._refuse_others(context)
            asked = read_instructions(request.data)
            self._check(asked)
            processors = self._pinned.processors(self._rename_map | asked.rename_map)
            self.lerobot_features = readable_features(
                self.policy.config, asked.lerobot_features, processors.rename_map
            )
            self.actions_per_chunk = asked.actions_per_chunk
            self.preprocessor, self.postprocessor = processors
        return services_pb2.Empty()

    def SendObservations(self, request_iterator: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        """What the robot observes; whether it is worth a look, LeRobot's rules say."""
        with self._errors_told(context):
            self._refuse_others(context)
            observation = read_observation(joined(request_iterator))
            with self._client_lock:
                self._refuse_others(context)
                if self.lerobot_features is None:
                    raise MessageError("An observation came, but no policy instructions before it.")
                _check_values(self.lerobot_features, observation)
                self._enqueue_observation(observation)
        return services_pb2.Empty()

    def GetActions(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        """The actions for what was observed last; none if nothing new comes in time."""
        with self._errors_told(context):
            with self._client_lock:
                known, observations = context.peer() == self._client, self.observation_queue
            if not known:  # LeRobot's client asks again at once
                time.sleep(self.config.obs_queue_timeout)
            self._refuse_others(context)
            try:
                observation = observations.get(timeout=self.config.obs_queue_timeout)
            except Empty:
                return services_pb2.Actions()
            with self._policy_lock:
                self._refuse_others(context)
                begun = time.perf_counter()
                actions = self._predict_action_chunk(observation)
                took = time.perf_counter() - begun
        logger.info(
            "Action chunk #%d: %d actions, %.0f ms.", observation.get_timestep(), len(actions), took * 1000
        )
        return services_pb2.Actions(data=pickle.dumps(actions))

    # -- what is behind them --------------------------------------------------------------------------------

    @contextmanager
    def _errors_told(self, context: grpc.ServicerContext) -> Iterator[None]:
        """Log what is wrong and tell the client."""
        try:
            yield
        except _NotServedError as error:
            logger.debug("%s", error)
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
        except _UNUSABLE as error:
            text = f"{type(error).__name__}: {error}"[:_LONGEST]
            logger.error("Refused from %s: %s", context.peer(), text)
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, text)

    def _refuse_others(self, context: grpc.ServicerContext) -> None:
        if context.peer() != self._client:
            raise _NotServedError(
                f"This server serves one robot at a time, at present {self._client or 'none'} and not "
                f"{context.peer()}. Start the client again to take over."
            )

    def _check(self, asked: Instructions) -> None:
        config = self.policy.config
        if not self._pinned.is_called(asked.pretrained_name_or_path):
            raise ValueError(
                f"The client asks for the policy {asked.pretrained_name_or_path!r}; this server has "
                f"{self._pinned.path!r} and loads no other. Start the client with "
                f"--pretrained_name_or_path={self._pinned.path}."
            )
        if asked.policy_type != config.type:
            raise ValueError(
                f"The client asks for a policy of type {asked.policy_type!r}; {self._pinned.path} is of type "
                f"{config.type!r}. Start the client with --policy_type={config.type}."
            )
        if not 1 <= asked.actions_per_chunk <= config.chunk_size:
            raise ValueError(
                f"--actions_per_chunk={asked.actions_per_chunk}: the policy plans {config.chunk_size} "
                f"actions at once. Start the client with a number from 1 to {config.chunk_size}."
            )
        if asked.device != self.device:
            logger.info("The policy runs on %s, the server's device, not on %s.", self.device, asked.device)

    def _predict_action_chunk(self, observation_t: TimedObservation) -> list[TimedAction]:
        """The way of ``lerobot-rollout``: upstream's server has one of its own, which resizes first."""
        seen, step = observation_t.get_observation(), observation_t.get_timestep()
        with self._client_lock:
            self._predicted_timesteps.add(step)
            self.last_processed_obs = observation_t
        try:
            frame = build_dataset_frame(self.lerobot_features, seen, OBS_STR)
            with inference_modes(self.policy.config):
                batch = prepare_observation_for_inference(frame, torch.device(self.device), seen.get("task"))
                if self._sent is not None:  # LeRobot's client sends the step of the action it did last
                    self.policy.carried_out(self._sent.plan, step - self._sent.step)
                plan = self._get_action_chunk(self.preprocessor(batch))
                chunk = self.postprocessor(plan)
        except _UNUSABLE:
            with self._client_lock:  # or LeRobot's rules would let no further observation of this step pass
                self._predicted_timesteps.discard(step)
                self.last_processed_obs = None
            raise
        self._sent = _Sent(step, plan)
        return self._time_action_chunk(observation_t.get_timestamp(), list(chunk.squeeze(0).cpu()), step)


def _check_values(features: Mapping[str, Feature], observation: TimedObservation) -> None:
    """See that an observation has what the robot said it would.

    Raises:
        MessageError: something is missing, or is no number or picture.
    """
    values = observation.get_observation()
    for key, feature in features.items():
        picture = key.startswith(f"{OBS_IMAGES}.")
        names = [key.removeprefix(f"{OBS_IMAGES}.")] if picture else feature["names"]
        for name in names or ():
            if not isinstance(values.get(name), np.ndarray if picture else (int, float, np.number)):
                raise MessageError(
                    f"The observation's {name!r} is {type(values.get(name)).__name__}; the robot said it "
                    f"would send {'a picture' if picture else 'a number'}."
                )
