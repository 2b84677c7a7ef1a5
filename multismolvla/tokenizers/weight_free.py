"""Weight-free stand-ins for the tokenizers of depth, segmentation and thermal pictures.

They let the mini preset run with no download. Each token says what its cell holds: a quantised mean depth,
the labels of four quadrants, a quantised mean temperature. They are not 4M's tokenizers: ids mean something
else and official 4M weights must not be used with them.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from multismolvla.checks import check_picture, check_range, checked_validity
from multismolvla.modalities import MINI_LABELS

#: A cell with a smaller share of valid pixels is absent: its mean would be mostly a guess.
MIN_VALID = 0.25
#: A greater depth is a wrong unit, not a far wall.
LIMIT_METRES = 1000.0


class WeightFreeTokenizer(ABC):
    """Common part: cell geometry, validity and input checks.

    Args:
        grid: rows and columns of the token grid, one number for a square one.
        vocab_size: number of ids.
    """

    #: Name of the modality in error messages.
    modality: str

    def __init__(self, grid: int | tuple[int, int], vocab_size: int) -> None:
        rows, columns = (grid, grid) if isinstance(grid, int) else grid
        if rows < 1 or columns < 1:
            raise ValueError(f"{type(self).__name__}: grid {grid} must be positive.")
        self.grid: tuple[int, int] = (rows, columns)
        self.vocab_size = vocab_size

    @abstractmethod
    def encode(self, image: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Tokenize a picture; see `multismolvla.tokenizers.ImageTokenizer.encode`."""

    @abstractmethod
    def features(self) -> Tensor:
        """Describe each id by numbers, float32 (vocab_size, F); ids that mean similar things are near."""

    def _check(self, image: Tensor, valid: Tensor | None, floating: bool) -> Tensor:
        """Check shapes and dtypes; returns validity as bool (B, 1, H, W)."""
        name = f"{self.modality} tokenizer"
        check_picture(name, image, 1, floating=floating)
        for side, cells, axis in zip(image.shape[2:], self.grid, ("height", "width"), strict=True):
            if side % cells:
                raise ValueError(
                    f"{name}: {axis} {side} is no multiple of its {cells} cells. Resize the picture."
                )
        return checked_validity(name, image, valid)

    def _cells(self, image: Tensor) -> Tensor:
        """(B, 1, H, W) -> (B, rows, columns, pixels per cell)."""
        rows, columns = self.grid
        height, width = image.shape[2:]
        x = image.reshape(-1, rows, height // rows, columns, width // columns)
        return x.transpose(2, 3).flatten(3)

    def _cell_means(self, image: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Mean of each cell's valid pixels and whether there are enough of them: (B, rows, columns) each."""
        usable = self._cells(valid)
        values = self._cells(torch.where(valid, image, torch.zeros_like(image)).float())
        count = usable.sum(-1)
        return values.sum(-1) / count.clamp(min=1), count >= MIN_VALID * usable.shape[-1]


class PatchDepthTokenizer(WeightFreeTokenizer):
    """Mean depth of a patch, quantised in logarithmic depth.

    Args:
        grid: token grid.
        bins: number of ids.
        near: depth in metres of the first bin's lower edge; nearer values fall into it.
        far: depth in metres of the last bin's upper edge; farther values fall into it.
    """

    modality = "depth"

    def __init__(
        self, grid: int | tuple[int, int] = 8, bins: int = 1024, near: float = 0.1, far: float = 4.0
    ) -> None:
        super().__init__(grid, bins)
        if not 0 < near < far:
            raise ValueError(
                f"PatchDepthTokenizer: near {near}, far {far}; expected metres with 0 < near < far."
            )
        self.near, self.far = near, far

    def encode(self, image: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Tokenize depth.

        Args:
            image: floating (B, 1, H, W), metres; 0 = no measurement.
            valid: bool (B, 1, H, W), True = usable; pixels of 0 are never usable.

        Returns:
            ids int64 (B, rows, columns); present bool (B, rows, columns), False below 25 % usable pixels.

        Raises:
            ValueError: wrong shape or dtype, or a valid pixel is NaN, infinite, negative or beyond 1000 m.
        """
        usable = self._check(image, valid, floating=True)
        check_depth(image[usable])
        mean, present = self._cell_means(image, usable & (image > 0))
        position = (mean.clamp(self.near, self.far) / self.near).log() / math.log(self.far / self.near)
        return _quantise(position, self.vocab_size), present

    def features(self) -> Tensor:
        """Fourier features of the bin centres."""
        return _fourier(self.vocab_size)


class SegTokenizer(WeightFreeTokenizer):
    """Common part of the segmentation tokenizers: the majority label of each of a patch's four quadrants.

    Quadrants are counted row-major (0 top left, 1 top right, 2 bottom left, 3 bottom right); ties go to the
    higher label, since in the label sets the things to handle come after the background.

    Args:
        grid: token grid.
        num_labels: size of the label set; 0 is the background.
        vocab_size: number of ids.
    """

    modality = "segmentation"

    def __init__(self, grid: int | tuple[int, int], num_labels: int, vocab_size: int) -> None:
        super().__init__(grid, vocab_size)
        if num_labels < 2:
            raise ValueError(f"{type(self).__name__}: num_labels {num_labels}; expected at least 2.")
        self.num_labels = num_labels

    def _quadrants(self, image: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
        """Labels int64 (B, rows, columns, 4), and presence as `encode` returns it."""
        usable = self._check(image, valid, floating=False)
        labels = torch.where(usable, image.long(), 0)
        low, high = (int(v) for v in labels.aminmax())
        if low < 0 or high >= self.num_labels:
            names = list(MINI_LABELS) if self.num_labels == len(MINI_LABELS) else ""
            raise ValueError(
                f"segmentation tokenizer: label {low if low < 0 else high} is outside the label set of "
                f"{self.num_labels} classes {names}. Map the source's ids to this set first."
            )
        # A side that does not halve is doubled: its middle row then counts half for either quadrant.
        for axis in (2, 3):
            if (image.shape[axis] // self.grid[axis - 2]) % 2:
                labels, usable = labels.repeat_interleave(2, axis), usable.repeat_interleave(2, axis)
        rows, columns = self.grid
        per_label = [self._quadrant_sums((labels == k) & usable) for k in range(self.num_labels)]
        votes = torch.stack(per_label, dim=-1)  # (B, 2 rows, 2 columns, L)
        whole = votes.view(-1, rows, 2, columns, 2, self.num_labels).sum((2, 4))
        whole = whole.repeat_interleave(2, 1).repeat_interleave(2, 2)
        # A quadrant without valid pixels follows its patch; ties go to the higher label.
        votes = torch.where(votes.sum(-1, keepdim=True) > 0, votes, whole)
        rank = torch.arange(self.num_labels, device=votes.device)
        winner = (votes * self.num_labels + rank).argmax(-1)
        quadrants = winner.view(-1, rows, 2, columns, 2).transpose(2, 3).flatten(3)  # (B, rows, columns, 4)
        share = self._cells(usable).float().mean(-1)
        return quadrants, share >= MIN_VALID

    def _quadrant_sums(self, mask: Tensor) -> Tensor:
        """Number of true pixels per quadrant: int64 (B, 2 rows, 2 columns)."""
        (rows, columns), (height, width) = self.grid, mask.shape[2:]
        cells = mask.reshape(-1, 2 * rows, height // (2 * rows), 2 * columns, width // (2 * columns))
        return cells.sum((2, 4))


class QuadrantSegTokenizer(SegTokenizer):
    """The labels of a patch's four quadrants, written as digits: id = sum of label_q * num_labels^q.

    Args:
        grid: token grid.
        num_labels: size of the label set; the vocabulary is its fourth power.
    """

    def __init__(self, grid: int | tuple[int, int] = 8, num_labels: int = 8) -> None:
        super().__init__(grid, num_labels, num_labels**4)

    def encode(self, image: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Tokenize class ids.

        Args:
            image: integer (B, 1, H, W), class ids in [0, num_labels).
            valid: bool (B, 1, H, W), True = usable; ``None`` = all.

        Returns:
            ids int64 (B, rows, columns); present bool (B, rows, columns), False below 25 % usable pixels.

        Raises:
            ValueError: wrong shape or dtype, or a valid pixel's label is outside the label set.
        """
        quadrants, present = self._quadrants(image, valid)
        return (quadrants * self._place_values(quadrants.device)).sum(-1), present

    def features(self) -> Tensor:
        """One-hot label per quadrant, so that ids with a label in common share a feature."""
        ids = torch.arange(self.vocab_size)[:, None]
        digits = ids // self._place_values(ids.device) % self.num_labels
        return torch.nn.functional.one_hot(digits, self.num_labels).flatten(1).float()

    def _place_values(self, device: torch.device) -> Tensor:
        return self.num_labels ** torch.arange(4, device=device)


class DominantSegTokenizer(SegTokenizer):
    """What is in a patch, and in which of its quadrants: id = 16 * label + the quadrants as bits.

    Of several things in a patch the one with the most quadrants is told, of equals the higher label; the
    background only where there is nothing else. For label sets whose fourth power is no vocabulary.

    Args:
        grid: token grid.
        num_labels: size of the label set; the vocabulary is sixteen times that.
    """

    def __init__(self, grid: int | tuple[int, int] = 8, num_labels: int = 33) -> None:
        super().__init__(grid, num_labels, 16 * num_labels)

    def encode(self, image: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Tokenize class ids; see `QuadrantSegTokenizer.encode`."""
        quadrants, present = self._quadrants(image, valid)
        same = (quadrants[..., :, None] == quadrants[..., None, :]).sum(-1)  # quadrants with the same label
        rank = (quadrants > 0) * (same * self.num_labels + quadrants)
        label = quadrants.gather(-1, rank.argmax(-1, keepdim=True))
        bits = ((quadrants == label) * self._bits(quadrants.device)).sum(-1)
        return 16 * label[..., 0] + bits, present

    def features(self) -> Tensor:
        """One-hot label per quadrant, the background in those that the thing leaves free."""
        ids = torch.arange(self.vocab_size)
        there = (ids[:, None] & self._bits(ids.device)) > 0
        labels = torch.where(there, ids[:, None] // 16, 0)
        return torch.nn.functional.one_hot(labels, self.num_labels).flatten(1).float()

    @staticmethod
    def _bits(device: torch.device) -> Tensor:
        return 2 ** torch.arange(4, device=device)


def seg_tokenizer(grid: int | tuple[int, int], num_labels: int) -> SegTokenizer:
    """The tokenizer for a label set: all quadrants of up to eight labels, else the dominant thing."""
    if num_labels <= len(MINI_LABELS):
        return QuadrantSegTokenizer(grid, num_labels)
    return DominantSegTokenizer(grid, num_labels)


class ThermalGridTokenizer(WeightFreeTokenizer):
    """Mean relative temperature of a coarse cell in linear bins over [0, 1].

    Args:
        grid: token grid.
        bins: number of ids.
    """

    modality = "thermal"

    def __init__(self, grid: int | tuple[int, int] = 4, bins: int = 256) -> None:
        super().__init__(grid, bins)

    def encode(self, image: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Tokenize relative temperature.

        Args:
            image: floating (B, 1, H, W) in [0, 1].
            valid: bool (B, 1, H, W), True = usable; ``None`` = all.

        Returns:
            ids int64 (B, rows, columns); present bool (B, rows, columns), False below 25 % usable pixels.

        Raises:
            ValueError: wrong shape or dtype, or a valid pixel is NaN, infinite or outside [0, 1].
        """
        usable = self._check(image, valid, floating=True)
        expected = "relative temperature in [0, 1]"
        check_range("thermal tokenizer", image[usable], -1e-4, 1 + 1e-4, expected)
        mean, present = self._cell_means(image, usable)
        return _quantise(mean, self.vocab_size), present

    def features(self) -> Tensor:
        """Fourier features of the bin centres."""
        return _fourier(self.vocab_size)


def structured_token_embedding(
    tokenizer: WeightFreeTokenizer, dim: int, generator: torch.Generator | None = None, std: float = 0.02
) -> Tensor:
    """Initial token table that knows what the ids mean: a random projection of the tokenizer's features.

    A table drawn at random tells a fresh tower nothing about which of 1,024 depths are alike; learning that
    costs more steps than the mini preset has. Here neighbouring bins of depth and thermal get similar rows,
    and a segmentation row is the sum over the quadrants of one random vector per (quadrant, label).

    Args:
        tokenizer: whose ids to embed.
        dim: width D of the rows.
        generator: CPU generator of the projection; ``None`` = PyTorch's global one.
        std: root mean square of the returned entries; 0.02 is what a plain table has. In a short localisation
            probe (250 steps, width 64) segmentation did best at 0.02 and lost beyond 0.3; depth liked 0.3 a
            little better.

    Returns:
        float32 (vocab_size, D), mean zero over the ids.
    """
    features = tokenizer.features()
    features = features - features.mean(dim=0)
    table = features @ torch.randn(features.shape[1], dim, generator=generator)
    return table * (std / table.square().mean().sqrt())


def check_depth(seen: Tensor) -> None:
    """Refuse valid depths that are NaN, infinite, negative or beyond `LIMIT_METRES`."""
    expected = f"metres in [0, {LIMIT_METRES:g}], 0 = no measurement"
    check_range("depth tokenizer", seen, 0.0, LIMIT_METRES, expected)


def _quantise(position: Tensor, bins: int) -> Tensor:
    """Bin of positions in [0, 1]: int64."""
    return (position * bins).floor().long().clamp(0, bins - 1)


def _fourier(bins: int, octaves: int = 6) -> Tensor:
    """Sin and cos of pi 2^j u at the bin centres u in (0, 1), weighted by 2^(-j/2): (bins, 2 octaves).

    The falling weights make the inner product fall with distance over the whole range, while the highest
    octave still tells bins 1/64 of the range apart.
    """
    u = (torch.arange(bins, dtype=torch.float32) + 0.5) / bins
    octave = torch.arange(octaves, dtype=torch.float32)
    angles = math.pi * u[:, None] * 2**octave
    weights = 2 ** (-octave / 2)
    return torch.cat([angles.sin() * weights, angles.cos() * weights], dim=-1)
