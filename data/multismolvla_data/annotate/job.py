"""Everything an annotation needs, made from its options: source, plan, provenance, and (when wanted) the networks."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multismolvla import weights
from multismolvla.fourm.modality import MINI_INFO, MODALITY_INFO, FourMModality
from multismolvla.modalities import Modality
from multismolvla.tokenizers.recipe import (
    file_fingerprint,
    fingerprints_of,
    parts_of,
    split_domains,
)
from multismolvla_data.annotate.config import AnnotateConfig, plain
from multismolvla_data.annotate.merge import joined_metadata
from multismolvla_data.annotate.source import Source
from multismolvla_data.annotate.streams import Plan, make_plan
from multismolvla_data.annotate.work import local_rank

if TYPE_CHECKING:
    from multismolvla_data.annotate.annotator import Annotator
    from multismolvla_data.annotate.estimators import Estimator

logger = logging.getLogger(__name__)


@dataclass
class Job:
    """One annotation.

    Attributes:
        cfg: the options.
        source: the dataset that is annotated.
        plan: what is made.
        episodes: the source's episodes that are taken, in order.

    Raises:
        ValueError: options and dataset do not fit.
    """

    cfg: AnnotateConfig
    source: Source
    plan: Plan
    episodes: list[int]

    @classmethod
    def open(cls, cfg: AnnotateConfig) -> Job:
        """Read the source's metadata and plan."""
        if not cfg.dataset:
            raise ValueError("--dataset is missing: the folder of a LeRobotDataset v3, or its hub id.")
        source = Source(cfg.dataset, cfg.num_workers)
        if source.root.resolve() == cfg.output.expanduser().resolve():
            raise ValueError(f"--output={cfg.output} is the dataset itself. Choose another folder.")
        joined_metadata(cfg.joined_from, source)  # refused now, not after hours
        plan = make_plan(cfg, source.features)
        every = range(source.meta.total_episodes)
        episodes = list(every) if cfg.episodes is None else list(cfg.episodes)
        if not episodes or not set(episodes) <= set(every) or len(set(episodes)) < len(episodes):
            raise ValueError(
                f"--episodes={cfg.episodes}: expected different episodes of 0 to {source.meta.total_episodes - 1}."
            )
        return cls(cfg, source, plan, episodes)

    @property
    def lengths(self) -> list[int]:
        """Frames of the episodes."""
        return [self.source.length(e) for e in self.episodes]

    @property
    def tokenized(self) -> list[str]:
        """Modalities whose ids are cached."""
        return sorted({s.modality for s in self.plan.streams if s.tokenize})

    @cached_property
    def domains(self) -> dict[str, tuple[FourMModality, ...]]:
        """The encoder domains of each tokenized modality.

        Raises:
            ValueError: a domain that is neither official nor in ``--encoder``'s config.
        """
        known: dict[str, FourMModality] = MODALITY_INFO | MINI_INFO
        if self.cfg.encoder:
            from multismolvla.fourm import FourMConfig

            config = FourMConfig.from_json(weights.locate(self.cfg.encoder, (weights.CONFIG_FILE,))[0])
            known |= {name: config.modality(name) for name in config.domains_in}
        found = {}
        for modality in self.tokenized:
            if modality not in self.cfg.domains:
                raise ValueError(
                    f"--domains names no encoder domain for {modality}. Add it, or set --tokens=false."
                )
            names = split_domains(self.cfg.domains[modality])
            unknown = [n for n in names if n not in known]
            if unknown:
                raise ValueError(
                    f"--domains: {unknown[0]!r} is no domain of 4M-21 ({[n for n in MODALITY_INFO if n.startswith('tok')]}). Name "
                    "the encoder that declares it with --encoder."
                )
            found[modality] = tuple(known[n] for n in names)
        return found

    @property
    def id_lengths(self) -> dict[str, int]:
        """Modality -> ids per picture."""
        return {m: sum(info.num_tokens for info in infos) for m, infos in self.domains.items()}

    @cached_property
    def fingerprints(self) -> dict[str, dict[str, str]]:
        """Modality -> part -> fingerprint of the tokenizer's weights; empty for the weight-free ones.

        Raises:
            FileNotFoundError: a file is not there; the message says how to get it.
        """
        return {m: fingerprints_of(parts, self.cfg.official) for m, parts in self.parts.items()}

    @property
    def parts(self) -> dict[str, tuple[str, ...]]:
        """Modality -> the official weights that make its ids."""
        if self.cfg.tokenizers == "patch":
            return {}
        return {m: parts_of(m, infos, self.cfg.official) for m, infos in self.domains.items()}

    def model(self, modality: str) -> str:
        """Hub id or folder of a modality's estimator."""
        return {
            Modality.DEPTH: self.cfg.depth_model,
            Modality.SEG: self.cfg.seg_model,
            Modality.THERMAL: self.cfg.thermal_model,
        }[Modality(modality)]

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """What must be equal for work to be continued, or for a dataset to pass for this one."""
        meta = self.source.root / "meta"
        source = hashlib.sha256((meta / "info.json").read_bytes())
        for path in sorted((meta / "episodes").glob("*/*.parquet")):
            source.update(file_fingerprint(path).encode())
        estimators = {m: file_fingerprint(weights.find_weights(self.model(m))) for m in self.plan.derived()}
        content = {
            "options": self.cfg.content(),
            "source": source.hexdigest(),
            "estimators": estimators,
            "tokenizers": self.fingerprints,
            "joined_from": joined_metadata(self.cfg.joined_from, self.source),
        }
        return dict(json.loads(json.dumps(content)))

    @property
    def device(self) -> str:
        """Where the networks run; with several processes on a machine each takes a GPU of its own."""
        import torch

        if self.cfg.device == "auto":
            return f"cuda:{local_rank() % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu"
        return f"cuda:{local_rank()}" if self.cfg.device == "cuda" else self.cfg.device

    def estimators(self) -> dict[str, Estimator]:
        """Load the networks of ``plan.derived()``."""
        import torch

        from multismolvla_data.annotate.estimators import (
            DepthEstimator,
            SegmentationEstimator,
            ThermalEstimator,
        )

        cfg, device = self.cfg, self.device
        narrow = cfg.dtype == "bfloat16" or (cfg.dtype == "auto" and device.startswith("cuda"))
        dtype = torch.bfloat16 if narrow else None
        made: dict[str, Estimator] = {}
        for modality in self.plan.derived():
            logger.info("Reading the %s estimator: %s.", modality, self.model(modality))
            if modality == Modality.DEPTH:
                made[modality] = DepthEstimator.from_pretrained(
                    cfg.depth_model,
                    output=cfg.depth_output,
                    range_m=cfg.relative_range_m,
                    device=device,
                    autocast=dtype,
                )
            elif modality == Modality.SEG:
                made[modality] = SegmentationEstimator.from_pretrained(
                    cfg.seg_model, device=device, autocast=dtype
                )
            else:
                made[modality] = ThermalEstimator.from_pretrained(
                    cfg.thermal_model,
                    device=device,
                    dtype=dtype,
                    steps=cfg.thermal_steps,
                    method=cfg.thermal_method,
                    label=cfg.thermal_label,
                    cfg_scale=cfg.thermal_cfg_scale,
                    size=cfg.thermal_size,
                    noise_mode=cfg.thermal_noise,
                    seed=cfg.seed,
                )
        return made

    def annotator(self, estimators: Mapping[str, Estimator]) -> Annotator:
        """Networks and tokenizers, ready for pictures."""
        from multismolvla.tokenizers import make_tokenizers
        from multismolvla_data.annotate.annotator import Annotator

        cfg = self.cfg
        tokenizers = make_tokenizers(
            cfg.tokenizers,
            self.domains,
            cfg.label_count,
            image_size=cfg.image_size,
            official=cfg.official,
            fingerprints={part: f for found in self.fingerprints.values() for part, f in found.items()},
        )
        return Annotator(cfg, self.plan, estimators, tokenizers, self.device)

    def annotation(self, provenance: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
        """What the new dataset's own metadata say about how it was made."""
        return {
            "fingerprint": self.fingerprint,
            "estimators": {m: dict(p) for m, p in provenance.items()},
            "recipes": {
                s.token_key: self.cfg.recipe(s.view, s.modality, self.fingerprints.get(s.modality))
                for s in self.plan.streams
                if s.tokenize
            },
            # without this machine's folders: the recipes know what is in them
            "policy_options": {k: v for k, v in self.policy_options().items() if not _is_here(v)},
            "registration": "assumed: all streams of a view show the same field of view, scaled",
            "notes": list(self.plan.notes),
            "versions": {p: version(p) for p in ("lerobot", "torch", "transformers", "diffusers")},
        }

    def policy_options(self) -> dict[str, Any]:
        """Options of a policy that reads the new dataset, JSON types: ids made with others are refused.

        Provenance is not among them: a policy takes them from the dataset.
        """
        cfg = self.cfg
        options: dict[str, Any] = {"views": self.plan.views, "num_labels": cfg.label_count}
        also = {"half_turns", "depth_range_m"}
        if self.tokenized:
            options |= {"tokenizers": cfg.tokenizers, "image_size": cfg.image_size, "square": cfg.square}
            also.add("encoder")
            if cfg.tokenizers == "official":
                options["domains"] = {"rgb": "rgb@224"} | {m: cfg.domains[m] for m in self.tokenized}
                also |= {"tokenizer_sources", "seg_labels", "seg_unknown", "bridge_map", "imagebind"}
            if Modality.THERMAL in self.parts:
                options |= {"thermal_route": cfg.thermal_route, "imagebind_rows": cfg.imagebind_rows}
        default = AnnotateConfig()  # equal to the policy's in these
        options |= {k: v for k in sorted(also) if (v := getattr(cfg, k)) != getattr(default, k)}
        return {k: plain(v) for k, v in options.items()}

    def bytes_per_frame(self) -> int:
        """Size of the id cache."""
        return sum(2 * self.id_lengths[s.modality] for s in self.plan.streams if s.tokenize)

    def picture_bytes(self) -> int:
        """Rough size of the added pictures per frame, compressed: depth 1, segmentation 0.1, thermal 0.5 bytes a pixel."""
        from multismolvla_data.annotate.source import shape_of

        total = 0.0
        for stream in (s for s in self.plan.streams if s.store):
            like = self.plan.rgb_key(stream.view) if stream.derive else stream.key
            height, width, _ = shape_of(self.source.features[like])
            share = {Modality.DEPTH: 1.0, Modality.SEG: 0.1, Modality.THERMAL: 0.5}[Modality(stream.modality)]
            total += share * height * width
        return math.ceil(total)


def _is_here(option: Any) -> bool:
    """Whether an option names a file or folder of this machine."""
    named = option.values() if isinstance(option, dict) else [option]
    return any(isinstance(value, str) and Path(value).exists() for value in named)
