"""Thermal pictures from RGB by ThermalGen."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor

from multismolvla import weights
from multismolvla.estimators.files import recipe_of
from multismolvla.estimators.interface import EstimatorRecipe, check_finite


@dataclass(frozen=True)
class ThermalSettings:
    """Arguments of `multismolvla.thermal.thermalgen.ThermalGen.generate`, by the same names."""

    steps: int = 4
    method: str = "euler"
    label: int | None = None
    cfg_scale: float = 1.0
    size: int = 256
    seed: int = 0


@dataclass
class ThermalEstimator:
    """Thermal pictures, with the same noise for every one.

    Noise of the episode or frame would make a picture's temperature depend on what nobody knows at run time:
    which episode of which data set this is.
    """

    model: Any  # ThermalGen
    settings: ThermalSettings
    recipe: EstimatorRecipe

    @classmethod
    def from_pretrained(
        cls,
        source: str,
        *,
        revision: str | None = None,
        device: str = "cpu",
        dtype: torch.dtype | None = None,
        **settings: Any,
    ) -> ThermalEstimator:
        """Load ThermalGen from a hub id or folder.

        Args:
            source: in the official layout.
            revision: commit, branch or tag on the hub; ``None`` = the newest.
            device: where it runs.
            dtype: of its weights; ``None`` = float32.
            settings: of `ThermalSettings`.

        Raises:
            FileNotFoundError: not there; the message says how to get it.
            ValueError: damaged files, or a setting that does not exist.
        """
        from multismolvla.thermal.thermalgen import ThermalGen

        unknown = sorted(set(settings) - {f.name for f in fields(ThermalSettings)})
        if unknown:
            raise ValueError(
                f"ThermalGen has no settings {unknown}; expected some of "
                f"{[f.name for f in fields(ThermalSettings)]}. Pictures made with noise of an episode or "
                "frame cannot be made again where a policy acts: annotate the data set anew."
            )
        chosen = ThermalSettings(**settings)
        tensors = weights.locate(source, revision=revision)[1]
        model = ThermalGen.from_pretrained(tensors.parent, dtype=dtype, device=device)
        return cls(model, chosen, recipe_of(source, tensors, dtype, **asdict(chosen)))

    def estimate(self, rgb: Tensor) -> Tensor:
        """See `Estimator.estimate`."""
        same = [(0, 0)] * len(rgb)
        made: Tensor = self.model.generate(rgb, frames=same, noise_mode="fixed", **asdict(self.settings))
        return check_finite(made.float(), self.recipe, "temperatures")
