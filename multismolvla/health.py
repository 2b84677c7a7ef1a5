"""Is a stream fit to be used? What one picture says by itself, and what a few looks in a row say.

Two halves, because LeRobot resets policies between episodes but never their processors:

- :func:`inspect` looks at one picture and remembers nothing. It runs in the policy's pre-processor and only
  *marks*: a cause, a distance to the training data, and an 8 x 8 thumbnail per stream.
- :func:`judge` belongs to the policy. It compares the marks with those of the looks before, per batch row,
  and says which streams count as absent.

A *look* is a moment at which the policy plans: every ``n_action_steps`` steps, or as often as somebody asks.
How long a picture may stay the same is counted in steps, other delays in looks.

The rules that act at once were built for what drivers deliver when a camera fails: all-zero, constant, not
finite, out of range, depth without a valid pixel or in another unit; the rules with a memory for a frozen
picture. Statistics of the training data (`StreamStatistics`) find pictures that are darker, brighter or
emptier than any of theirs. No rule was built for noise, blur, glare or smoke.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import cache

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from multismolvla.modalities import Modality


class Cause(IntEnum):
    """Why a stream counts as absent; of several the greatest."""

    FIT = 0
    UNUSUAL = 1  # unlike any picture of the training data
    FROZEN = 2  # the same content while the robot moves
    SKEW = 3  # taken at another moment than its view's RGB
    DEPTH_SCALE = 4  # far nearer or farther than in the training data, or than a robot arm looks
    NO_DEPTH = 5  # no valid pixel
    CONSTANT = 6  # no structure at all
    ZERO = 7  # every value is zero: what drivers deliver instead of nothing
    OUT_OF_RANGE = 8
    NOT_FINITE = 9
    # of what the policy estimates of RGB; its pictures themselves are not judged
    NOT_DUE = 10  # estimated at every k-th look only, and not at this one
    NO_ESTIMATE = 11  # what estimates it failed, or is not there
    NO_RGB = 12  # the picture it would be estimated of is lost

    @property
    def label(self) -> str:
        """Name for readers."""
        return self.name.lower().replace("_", " ")


#: Below this standard deviation (values in [0, 1]) a picture is constant. The smallest of a healthy one was
#: 0.12 (mini suite, both cameras).
CONSTANT_DEVIATION = 0.01
#: Side of the thumbnail by which two looks are compared.
THUMBNAIL = 8
#: Scalar features of a picture, see :func:`inspect`.
FEATURES = ("mean", "deviation", "contrast", "dark", "bright", "valid", "level")
#: Least distance that counts as unusual. Policies go where no demonstration went: clean roll-outs of the mini
#: suite came up to 1.4 units beyond the range of the demonstrations.
LEAST_THRESHOLD = 3.0
#: Score of a stream that a rule declares unfit.
CERTAIN = 10.0
#: Numbers of a stream's marks: cause, distance, the robot's motion from which on two pictures that hardly
#: differ say that it is frozen (0 = never), thumbnail.
MARKS = 3 + THUMBNAIL**2
#: Key of what `judge` remembers, where a caller keeps it in the policy's stead: float (B, memory_size(...)).
MEMORY_KEY = "observation.health_memory"

_PIXELS = 64  # pictures are inspected at this side, so that the price does not depend on the camera
_SAME = 1e-12  # thumbnails that differ by less are equal
#: The robot moves when a number of its normalised state changes by more than this between two looks.
MOVED = 0.02
_OUT, _IN = 2, 3  # unusual looks in a row until a stream is absent, and usual ones until it is back
_CLEARLY = 2.0  # a distance at which one look suffices
_NEAR = 2  # looks in a row that differ by less than any healthy ones until a picture counts as frozen
#: Steps of the control loop for which a healthy picture may stay the same while the robot moves: of a camera
#: at a quarter of the loop's rate, a little late; and of a thermal one, whose shutter closes for a second.
_SAME_STEPS, _SHUTTER_STEPS = 5, 30
_OCTAVES = 1.0  # depth twice as far as any of the training data, or half as near, is another unit
#: Per stream: whether there was a look, the last thumbnail, steps for which looks were equal, whether it
#: counts as frozen, unusual looks in a row, usual looks in a row, whether it counts as unusual.
_MEMORY = 1 + THUMBNAIL**2 + 5


def health_key(key: str) -> str:
    """Key of the marks of picture ``key``: float32 (B, MARKS)."""
    return f"{key}_health"


@dataclass(frozen=True)
class Picture:
    """Canonical pictures of one stream, see :mod:`multismolvla.modalities`.

    Attributes:
        image: (B, C, H, W).
        modality: of the stream.
        valid: bool (B, 1, H, W), of depth.
    """

    image: Tensor
    modality: str
    valid: Tensor | None = None

    @property
    def scaled(self) -> bool:
        """Whether values are brightness in [0, 1], neither metres nor class ids."""
        return self.modality in (Modality.RGB, Modality.THERMAL)


@dataclass(frozen=True)
class Inspection:
    """What pictures of S streams say by themselves.

    Attributes:
        cause: int64 (B, S), a `Cause` of those that need no memory.
        features: float32 (B, S, len(FEATURES)).
        thumbnail: float32 (B, S, 64): mean brightness, metres or id of 8 x 8 fields.
    """

    cause: Tensor
    features: Tensor
    thumbnail: Tensor


def inspect(pictures: Sequence[Picture]) -> Inspection:
    """Look at canonical pictures, one or more streams of the same batch and device at once."""
    grey = torch.stack([_sampled(p.image) for p in pictures], 1)  # (B, S, 64, 64)
    seen = torch.ones_like(grey)
    for number, picture in enumerate(pictures):
        if picture.valid is not None:
            seen[:, number] = _sampled(picture.valid)
    where = grey.device
    scaled = torch.tensor([p.scaled for p in pictures], device=where)
    depth = torch.tensor([p.modality == Modality.DEPTH for p in pictures], device=where)

    mass, sums = _fields(seen), _fields(grey * seen)  # (B, S, 64)
    count = mass.sum(2).clamp_min(1e-6)
    mean = sums.sum(2) / count
    deviation = _fields((grey - mean[..., None, None]).square_().mul_(seen)).sum(2).div(count).sqrt()
    thumbnail = torch.where(mass > 0, sums / mass.clamp_min(1e-6), mean[..., None])
    features = torch.stack(
        [
            mean,
            deviation,
            thumbnail.std(2),
            _share(grey <= 2 / 255) * scaled,
            _share(grey >= 253 / 255) * scaled,
            mass.mean(2),
            mean.clamp_min(1e-3).log2() * depth,
        ],
        2,
    )
    constant = torch.where(scaled & (deviation < CONSTANT_DEVIATION), int(Cause.CONSTANT), 0)
    cause = torch.where(scaled & ~grey.flatten(2).any(2), int(Cause.ZERO), constant)
    cause = torch.where(depth & ~seen.flatten(2).any(2), int(Cause.NO_DEPTH), cause)
    return Inspection(cause, features, thumbnail)


def _sampled(image: Tensor) -> Tensor:
    """The pictures' mean channel at 64 x 64 points: (B, 64, 64), whatever their size."""
    rows, columns = _points(*image.shape[-2:], image.device)
    taken = image[..., rows, columns].float()
    return taken[:, 0] if taken.shape[1] == 1 else taken.mean(1)


@cache
def _points(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows (64, 1) and columns (64,) that are looked at."""
    points = torch.arange(_PIXELS, device=device)
    return (points * height // _PIXELS)[:, None], points * width // _PIXELS


def _fields(values: Tensor) -> Tensor:
    """Means of the 8 x 8 fields: (B, S, 64, 64) -> (B, S, 64)."""
    return F.avg_pool2d(values, _PIXELS // THUMBNAIL).flatten(2)


def _share(where: Tensor) -> Tensor:
    return where.flatten(2).float().mean(2)


def _outside(features: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """How far each feature lies beyond its range, 0 within."""
    return torch.maximum(low - features, features - high).clamp_min(0)


@dataclass(frozen=True)
class StreamStatistics:
    """What healthy pictures of one stream look like.

    Attributes:
        low: float32 (len(FEATURES),), smallest healthy value of each feature.
        high: the largest.
        spread: what counts as one unit beyond them.
        threshold: distance that no held-out picture exceeded.
        change: least change of a thumbnail between two looks while the robot moved.
        constant: whether healthy pictures may have no structure.
        motion: what counts as moving there, in the units of `MOVED`; pictures of an arm that hovers hardly
            change.
    """

    low: Tensor
    high: Tensor
    spread: Tensor
    threshold: float
    change: float
    constant: bool
    motion: float

    def distance(self, features: Tensor) -> Tensor:
        """How far features (B, F) lie outside the healthy range; 1 = at the threshold."""
        return (_outside(features, self.low, self.high) / self.spread).amax(1) / self.threshold

    @classmethod
    def unfitted(cls, modality: str) -> StreamStatistics:
        """What holds where nothing was fitted: any picture is usual, and only equal ones are the same.

        Of class ids not even these: with no object in sight they are equal while the robot moves.
        """
        never = torch.full((len(FEATURES),), torch.inf)
        change = 0.0 if modality == Modality.SEG else _SAME
        return cls(-never, never, torch.ones(len(FEATURES)), 1.0, change, False, MOVED)

    def to_tensor(self) -> Tensor:
        """All numbers in one row, float32 (3 * F + 4,), for a file."""
        numbers = torch.tensor([self.threshold, self.change, float(self.constant), self.motion])
        return torch.cat([self.low, self.high, self.spread, numbers]).float()

    @classmethod
    def from_tensor(cls, row: Tensor) -> StreamStatistics:
        """The inverse of :meth:`to_tensor`.

        Raises:
            ValueError: numbers of another version, or damaged ones.
        """
        number = len(FEATURES)
        if row.shape != (3 * number + 4,) or not row.isfinite().all():
            raise ValueError(
                f"Health statistics of shape {tuple(row.shape)} (finite: {bool(row.isfinite().all())}), "
                f"expected {3 * number + 4} finite numbers. Fit them again: multismolvla-health fit."
            )
        threshold, change, constant, motion = row[-4:].tolist()
        low, high, spread = row[:-4].cpu().split(number)
        return cls(low, high, spread, threshold, change, bool(constant), motion)


class Marker:
    """Compares inspections of some streams with the statistics of the training data.

    Args:
        modalities: of the streams, in their order.
        statistics: of each stream; ``None`` = none were fitted.
        states: where the robot was in the training data, see :func:`fit_states`; ``None`` = anywhere.
    """

    def __init__(
        self,
        modalities: Sequence[str],
        statistics: Sequence[StreamStatistics | None],
        states: Tensor | None = None,
    ) -> None:
        rows = [s or StreamStatistics.unfitted(m) for m, s in zip(modalities, statistics, strict=True)]
        self._low, self._high, self._spread = (
            torch.stack([getattr(row, name) for row in rows]) for name in ("low", "high", "spread")
        )
        self._threshold = torch.tensor([row.threshold for row in rows])
        self._change = torch.tensor([max(row.change, _SAME) for row in rows])
        self._motion = torch.tensor([row.motion if row.change > 0 else 0.0 for row in rows])
        self._constant = torch.tensor([row.constant for row in rows])
        self._states = torch.tensor([[-torch.inf], [torch.inf]]) if states is None else states

    def __call__(self, seen: Inspection, known: Tensor | None = None, state: Tensor | None = None) -> Tensor:
        """Marks of the pictures.

        Args:
            seen: what S pictures of B rows say by themselves.
            known: int64 (B, S), causes found before the pictures were canonical.
            state: float (B, D), of the robot, in the units of the data set.

        Returns:
            float32 (B, S, MARKS).
        """
        self._to(seen.cause.device)
        outside = _outside(seen.features, self._low, self._high)
        distance = (outside / self._spread).amax(2) / self._threshold
        octaves = outside[..., FEATURES.index("level")]  # always 0 but for depth
        wrong = (octaves > _OCTAVES) & (seen.cause == Cause.FIT)
        cause = torch.where(wrong, int(Cause.DEPTH_SCALE), seen.cause)
        cause = torch.where(self._constant & (cause == Cause.CONSTANT), int(Cause.FIT), cause)
        if known is not None:
            cause = torch.maximum(cause, known)
        motion = self._motion.expand_as(distance)
        if state is not None:
            low, high = self._states
            # an arm that has left the picture moves, and nothing in it changes
            motion = motion * ((state >= low) & (state <= high)).all(1, keepdim=True)
        numbers = torch.stack([cause.float(), distance, motion], 2)
        return torch.cat([numbers, seen.thumbnail / self._change[:, None]], 2)

    def _to(self, device: torch.device) -> None:
        if self._low.device != device:
            for name, value in vars(self).items():
                setattr(self, name, value.to(device))


def memory_size(streams: int, state: int) -> int:
    """Width of what `judge` remembers per row."""
    return streams * _MEMORY + state


@dataclass(frozen=True)
class Verdict:
    """What a look says of every stream.

    Attributes:
        cause: int64 (B, S), a `Cause`; `Cause.FIT` = usable.
        score: float32 (B, S), how unlike a usable stream: the distance, beyond 1 unlike any picture of the
            training data, and `CERTAIN` where a rule says so; NaN for a stream without marks.
        memory: float32 (B, memory_size(S, D)), for the next look.
    """

    cause: Tensor
    score: Tensor
    memory: Tensor


def patience(modalities: Sequence[str]) -> Tensor:
    """Steps of the control loop, float (S,), for which a healthy picture may stay the same."""
    return torch.tensor([float(_SHUTTER_STEPS if m == Modality.THERMAL else _SAME_STEPS) for m in modalities])


def judge(
    marks: Tensor, state: Tensor, memory: Tensor | None, longest: Tensor | None = None, steps: int = 1
) -> Verdict:
    """Say which streams count as absent, from this look's marks and what the looks before have left.

    Args:
        marks: float32 (B, S, MARKS); a negative cause stands for a stream without marks.
        state: float32 (B, D), normalised.
        memory: of the look before; ``None`` or zeros at an episode's first look.
        longest: float (S,), see :func:`patience`; ``None`` = one comparison is enough.
        steps: of the control loop since the look before, at least.
    """
    rows, streams, _ = marks.shape
    if memory is None:
        memory = marks.new_zeros(rows, memory_size(streams, state.shape[1]))
    before = memory[:, : streams * _MEMORY].unflatten(1, (streams, _MEMORY))
    began, thumbnail_before = before[..., 0] > 0, before[..., 1 : 1 + THUMBNAIL**2]
    equal, was_frozen, strange, usual, was_unusual = before[..., 1 + THUMBNAIL**2 :].unbind(-1)
    cause, distance = marks[..., 0].long(), marks[..., 1]
    motion, thumbnail = marks[..., 2], marks[..., 3:]
    marked = cause >= 0

    way = (state - memory[:, streams * _MEMORY :]).abs().amax(1, keepdim=True)  # (B, 1)
    difference = (thumbnail - thumbnail_before).abs().amax(-1)
    same = began & marked & (difference < 1)
    near = same & (motion > 0)
    exact = (difference == 0) & (way > MOVED)
    equal = torch.where(near, equal + steps * (exact | (way > motion)), 0.0)
    too_long = equal > (0.0 if longest is None else longest.to(equal))
    identical = near & exact & too_long
    frozen = identical | (too_long & (equal >= _NEAR * steps)) | (same & (was_frozen > 0))

    # a black picture says nothing of what the sensor shows once it is back
    fit, far = cause <= Cause.FIT, distance > 1
    strange = torch.where(fit, torch.where(far, strange + 1, 0.0), strange)
    usual = torch.where(fit, torch.where(far, 0.0, usual + 1), usual)
    clearly = fit & (distance > _CLEARLY)
    unusual = torch.where(was_unusual > 0, usual < _IN, (strange >= _OUT) | clearly)

    found = torch.where(frozen, int(Cause.FROZEN), torch.where(unusual, int(Cause.UNUSUAL), 0))
    now = torch.stack([equal, frozen.float(), strange, usual, unusual.float()], -1)
    kept = torch.cat([marked[..., None].float(), thumbnail, now], -1).flatten(1)
    cause = torch.maximum(cause, found)
    score = torch.where(cause > Cause.UNUSUAL, CERTAIN, distance).masked_fill(~marked, torch.nan)
    return Verdict(cause.clamp_min(0), score, torch.cat([kept, state.to(kept)], 1))


def fit_statistics(
    episodes: Sequence[Tensor], held_out: Sequence[Tensor], changes: Tensor, motion: float
) -> StreamStatistics:
    """Statistics of one stream.

    The threshold is the greatest distance of any held-out picture from the range of the others (split
    conformal prediction: of n held-out episodes at most one in n + 1 is expected to exceed it), and never
    below `LEAST_THRESHOLD` units.

    Args:
        episodes: features (N, F) of the pictures of each episode that sets the range.
        held_out: the same of episodes that set the threshold.
        changes: (N,), greatest change of a thumbnail's field between two looks, while the robot moved.
        motion: what counts as moving, see :func:`fit_motion`.

    Raises:
        ValueError: no episode for the range, or none for the threshold.
    """
    if not episodes or not held_out:
        raise ValueError(
            f"{len(episodes)} episodes for the range and {len(held_out)} held out: at least one of each is "
            "needed. Give more episodes."
        )
    seen = torch.cat(list(episodes))
    low, high = seen.amin(0), seen.amax(0)
    spread = torch.maximum((high - low) * 0.25, torch.full_like(low, 0.02))
    ranged = StreamStatistics(low, high, spread, 1.0, 0.0, False, motion)
    threshold = max([LEAST_THRESHOLD, *(ranged.distance(f).max().item() for f in held_out)])
    change = changes.min().item() / 2 if len(changes) else 0.0
    constant = seen[:, FEATURES.index("deviation")].min().item() < 2 * CONSTANT_DEVIATION
    return replace(ranged, threshold=threshold, change=change, constant=constant)


def fit_motion(ways: Tensor) -> float:
    """What counts as moving: less than the robot moved between 19 of 20 looks of the training data.

    Args:
        ways: (N,), greatest change of a number of the normalised state between two looks, pauses among them.
    """
    moving = ways[ways > MOVED]
    return moving.quantile(0.05).item() if len(moving) else MOVED


def fit_states(states: Tensor) -> Tensor:
    """Least and greatest state (2, D) of training states (N, D), with a tenth of the range beyond them.

    That a moving robot changes its pictures was learned there, and is believed nowhere else. A number that
    never changed has no limits: it says nothing of where the robot was.
    """
    low, high = states.amin(0), states.amax(0)
    margin = torch.where(high > low, (high - low) * 0.1, torch.inf)
    return torch.stack([low - margin, high + margin])
