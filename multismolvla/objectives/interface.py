"""What a policy shows its objectives at one training step, and what an objective is.

Letters: B batch, V cameras, N tokens per camera, D width of the language model, E width of the encoder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

from torch import Tensor, nn


class Look(NamedTuple):
    """One look at a batch, pooled over the tokens of the cameras that are there.

    Attributes:
        features: of the connector's tokens, float (B, D), zero where nothing is there.
        there: bool (B,), whether the sample shows anything.
    """

    features: Tensor
    there: Tensor


class UnimodalLook(NamedTuple):
    """A look at one modality alone, drawn anew at every step, the same on all ranks.

    Attributes:
        modality: its name.
        look: what the connector makes of it.
        encoded: the frozen encoder's tokens, pooled alike, float (B, E) without gradient.
    """

    modality: str
    look: Look
    encoded: Tensor


class Unlabelled(NamedTuple):
    """Looks at K frames of another data set, of which neither task nor actions are known.

    Attributes:
        seen: as :meth:`Step.seen`.
        unimodal: of the same modality as :meth:`Step.unimodal`.
        episode: int64 (K,), negative: none of the batch's.
        frame: int64 (K,), its number in its data set.
    """

    seen: Look
    unimodal: UnimodalLook
    episode: Tensor
    frame: Tensor


class BridgeInputs(NamedTuple):
    """Arguments of `multismolvla.connector.VisualBridge`, R = B * V."""

    tokens: Mapping[str, Tensor]
    present: Mapping[str, Tensor]
    globals: Mapping[str, Tensor]
    globals_present: Mapping[str, Tensor]
    rows: int


class CompleteLook(NamedTuple):
    """A look at everything that the sample has, before dropout and corruption.

    Attributes:
        look: pooled.
        tokens: of the connector, float (B, V, N, D).
        rgb: bool (B, V), the cameras whose RGB is there.
        inputs: of the connector, from the encoder as published, without adapters on it; ``None`` if no sample
            shows anything.
    """

    look: Look
    tokens: Tensor
    rgb: Tensor
    inputs: BridgeInputs | None


class AttackedLook(NamedTuple):
    """A look at attacked RGB beside the other sensors; without the streams that are computed from RGB.

    Attributes:
        look: pooled.
        tokens: of the connector, float (B, V, N, D).
    """

    look: Look
    tokens: Tensor


class Velocities(NamedTuple):
    """Velocity fields at equal noise and time, (N, T, A), and which actions are real, (N, T, 1).

    N is B times the draws of noise and time per sample.
    """

    dropped: Tensor
    complete: Tensor
    real: Tensor


class Step(Protocol):
    """One training step of a policy. Each look is made once, by the first objective that asks for it."""

    @property
    def number(self) -> int:
        """Steps done so far in this stage."""

    @property
    def total(self) -> int:
        """Length of the stage in steps."""

    @property
    def task(self) -> Tensor:
        """Task of each sample, int64 (B,); -1 = unlabelled."""

    @property
    def episode(self) -> Tensor:
        """Episode of each sample, int64 (B,)."""

    @property
    def index(self) -> Tensor:
        """Number of each sample's frame in the data set, int64 (B,)."""

    @property
    def chunk(self) -> int:
        """Frames that an action chunk spans."""

    def seen(self) -> Look:
        """What the stage's own loss has seen, after dropout and corruption."""

    def unimodal(self) -> UnimodalLook:
        """One modality of that alone."""

    def unlabelled(self) -> Unlabelled | None:
        """Frames of the second data set; ``None`` where there is none."""

    def complete(self) -> CompleteLook:
        """Everything, undisturbed."""

    def measured(self) -> CompleteLook:
        """The same without what is computed from RGB: what an attack is compared with."""

    def attacked(
        self, distance: Callable[[Tensor], Tensor], radius: float, step: float, steps: int
    ) -> AttackedLook:
        """RGB attacked so that ``distance`` of the connector's tokens (B, V, N, D) grows; in pixel units."""

    def velocities(self) -> Velocities:
        """What the action expert answers with the dropped and with the complete sensors."""


class Term(NamedTuple):
    """A scalar loss and numbers for the log; the same names at every step and on every rank."""

    loss: Tensor
    logs: dict[str, float]


class Start(NamedTuple):
    """What a new objective finds.

    Attributes:
        instructions: mean language embedding of each task, float (C, D).
        bridge: the policy's, with the weights that it starts from.
    """

    instructions: Tensor
    bridge: nn.Module


class ObjectiveModule(nn.Module):
    """A loss with what it trains.

    PEFT copies such a module and forwards ``forward`` alone, so that nothing else is called in training.

    Attributes:
        anchors: of the instructions, float (C, d), where it has any.
    """

    anchors: Tensor

    def begin(self, start: Start) -> None:
        """Take over what stays fixed from here on; not called where a checkpoint brings it."""

    def forward(self, step: Step) -> Term:
        """The loss of one step."""
        raise NotImplementedError
