"""What an annotation's options come to: its source, its plan, its networks, and what the result tells."""

from __future__ import annotations

import json
import logging
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import torch

from multismolvla.estimators import Estimator, EstimatorRecipe, load_estimator
from multismolvla.modalities import Modality
from multismolvla.tokenizers.recipe import file_fingerprint
from multismolvla.weights import find_weights
from multismolvla_data.annotate.config import AnnotateConfig, TokenizerOptions, as_json
from multismolvla_data.annotate.plan import AnnotationPlan, make_plan
from multismolvla_data.annotate.source import SourceDataset, dataset_digest, joined_metadata
from multismolvla_data.annotate.tokenizing import IdMaker, StreamTokenizers
from multismolvla_data.annotate.work import local_rank
from multismolvla_data.formats.metadata import Annotation, JsonObject
from multismolvla_data.formats.workspace import Workspace

logger = logging.getLogger(__name__)

COMMAND = "multismolvla-annotate"


@dataclass(frozen=True)
class AnnotationSetup:
    """What the options come to; no network is loaded yet."""

    cfg: AnnotateConfig
    source: SourceDataset
    plan: AnnotationPlan
    episodes: list[int]  # of the source that are taken, in order
    tokenizers: StreamTokenizers

    @classmethod
    def of(cls, cfg: AnnotateConfig) -> AnnotationSetup:
        """Read the source's metadata and plan.

        Raises:
            ValueError: options and data set do not fit.
            FileNotFoundError: the data set is not there; the message says how to get it.
        """
        if not cfg.dataset:
            raise ValueError("--dataset is missing: the folder of a LeRobotDataset v3, or its hub id.")
        source = SourceDataset(cfg.dataset, cfg.num_workers)
        if source.root.resolve() == cfg.output.expanduser().resolve():
            raise ValueError(f"--output={cfg.output} is the data set itself. Choose another folder.")
        joined_metadata(cfg.joined_from, source)  # refused now, not after hours
        plan = make_plan(cfg, source.features)
        every = range(source.meta.total_episodes)
        episodes = list(every if cfg.episodes is None else cfg.episodes)
        if not episodes or not set(episodes) <= set(every) or len(set(episodes)) < len(episodes):
            raise ValueError(f"--episodes={cfg.episodes}: expected different episodes of 0 to {every[-1]}.")
        tokenizers = StreamTokenizers(cfg, plan.streams, cfg.label_count, cfg.encoder)
        return cls(cfg, source, plan, episodes, tokenizers)

    @property
    def lengths(self) -> list[int]:
        """Frames of the episodes."""
        return [self.source.lengths[episode] for episode in self.episodes]

    def model(self, modality: str) -> str:
        """Hub id or folder of a modality's estimator."""
        models = {Modality.DEPTH: self.cfg.depth_model, Modality.SEG: self.cfg.seg_model}
        return models.get(Modality(modality), self.cfg.thermal_model)

    @cached_property
    def workspace(self) -> Workspace:
        """Where the data set is made; the networks' files must be there."""
        joined = joined_metadata(self.cfg.joined_from, self.source)
        identity: JsonObject = {
            "options": self.cfg.content(),
            "source": dataset_digest(self.source.root),
            "estimators": {m: file_fingerprint(find_weights(self.model(m))) for m in self.plan.derived},
            "tokenizers": self.tokenizers.fingerprints,
            "joined_from": msgspec.to_builtins(joined),
        }
        return Workspace(COMMAND, self.cfg.output, identity)

    @property
    def device(self) -> str:
        """Where the networks run; with several processes on a machine each takes a GPU of its own."""
        if self.cfg.device == "auto":
            return f"cuda:{local_rank() % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu"
        return f"cuda:{local_rank()}" if self.cfg.device == "cuda" else self.cfg.device

    def load_estimators(self) -> dict[str, Estimator]:
        """Load the networks of the derived modalities."""
        cfg, device = self.cfg, self.device
        narrow = cfg.dtype == "bfloat16" or (cfg.dtype == "auto" and device.startswith("cuda"))
        dtype = torch.bfloat16 if narrow else None
        loaded: dict[str, Estimator] = {}
        for modality in self.plan.derived:
            model = self.model(modality)
            logger.info("Reading the %s estimator: %s.", modality, model)
            loaded[modality] = load_estimator(
                modality, model, device=device, dtype=dtype, **self._settings(modality)
            )
        return loaded

    def _settings(self, modality: str) -> dict[str, Any]:
        """What decides the pictures of a modality's estimator beside its network."""
        cfg = self.cfg
        if modality == Modality.DEPTH:
            return {"output": cfg.depth_output, "range_m": cfg.relative_range_m}
        if modality == Modality.SEG:
            return {}
        return {
            "steps": cfg.thermal_steps,
            "method": cfg.thermal_method,
            "label": cfg.thermal_label,
            "cfg_scale": cfg.thermal_cfg_scale,
            "size": cfg.thermal_size,
            "seed": cfg.seed,
        }

    def id_maker(self) -> IdMaker:
        """The tokenizers at work."""
        return IdMaker(self.tokenizers, self.plan.views, self.device, self.cfg.health)

    def policy_options(self) -> JsonObject:
        """Options of a policy that reads the new data set: ids made with others are refused.

        Provenance is not among them: a policy takes it from the data set.
        """
        cfg, tokenizers, default = self.cfg, self.tokenizers, TokenizerOptions()
        options: dict[str, object] = {"views": self.plan.views, "num_labels": cfg.label_count}
        named = {"tokenizers", "image_size", "square"} if tokenizers.tokenized else set()
        if cfg.encoder:
            named.add("encoder")
        if Modality.THERMAL in tokenizers.parts:
            named |= {"thermal_route", "imagebind_rows"}
        # the other defaults are the policy's
        own = {option.name for option in fields(TokenizerOptions)} - {"domains", "health"}
        named |= {name for name in own if getattr(cfg, name) != getattr(default, name)}
        if tokenizers.parts:
            options["domains"] = {"rgb": "rgb@224"} | {m: cfg.domains[m] for m in tokenizers.domains}
        options |= {name: getattr(cfg, name) for name in sorted(named)}
        return {name: as_json(value) for name, value in options.items()}

    def policy_arguments(self) -> list[str]:
        """The same as arguments of a command line."""
        arguments = []
        for name, value in sorted(self.policy_options().items()):
            text = json.dumps(value) if isinstance(value, dict | list) else str(value)
            arguments.append(f"--policy.{name}={shlex.quote(text)}")
        return [*arguments, "--dataset.depth_output_unit=m"]

    def annotation(self, recipes: Mapping[str, EstimatorRecipe]) -> Annotation:
        """What the new data set's metadata say about how it was made."""
        options = self.policy_options()
        return Annotation(
            streams={},
            estimators=msgspec.to_builtins(recipes),
            recipes=self.tokenizers.recipes,
            # without this machine's folders: the recipes know what is in them
            policy_options={name: value for name, value in options.items() if not _is_here(value)},
            notes=list(self.plan.notes),
        )


def _is_here(option: object) -> bool:
    """Whether an option names a file or folder of this machine."""
    named = option.values() if isinstance(option, dict) else [option]
    return any(isinstance(value, str) and Path(value).exists() for value in named)
