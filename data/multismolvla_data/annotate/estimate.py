"""What ``multismolvla-annotate --dry-run`` prints: streams, downloads with licences, disk and time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from multismolvla.modalities import Modality
from multismolvla.pretrained import SOURCES, TOKENIZER_SOURCES, licence_of
from multismolvla.tokenizers.recipe import NETWORK
from multismolvla.weights import find_weights
from multismolvla_data.annotate.setup import AnnotationSetup
from multismolvla_data.formats.features import PictureFeature

#: Operations per picture in GFLOP, of the default networks at their default sizes, from their configurations.
_ESTIMATOR_GFLOP = {"depth": 90.0, "seg": 220.0, "thermal": 895.0}
_THERMAL_STEP_GFLOP = 322.0
_TOKEN_GFLOP = {"depth": 37.0, "seg": 42.0, "network": 325.0, "imagebind": 49.0, "imagebind_global": 0.1}
#: Sustained TFLOP/s that the estimate assumes: (estimators in bfloat16, tokenizers in float32).
_MACHINES = {"H100-class GPU": (200.0, 30.0), "RTX 4090-class GPU": (60.0, 30.0), "16 CPU cores": (0.5, 0.5)}
#: Bytes of a stored picture per pixel, compressed.
_BYTES_PER_PIXEL = {"depth": 1.0, "seg": 0.1, "thermal": 0.5}


def plan_text(setup: AnnotationSetup) -> str:
    """The plan in words, for the terminal; asks no network."""
    size = f"{len(setup.episodes)} episodes, {sum(setup.lengths)} frames"
    lines = [
        f"{setup.source.root}: {size} -> {setup.cfg.output}",
        "",
        *_streams(setup),
        *(f"  note: {note}" for note in setup.plan.notes),
        "",
        "Networks (downloaded where they are not here yet):",
        *_networks(setup),
        "",
        *_costs(setup),
        "",
        "Options of the policy for the new data set:",
        *(f"  {line}" for line in setup.policy_arguments()),
    ]
    return "\n".join(lines) + "\n"


def id_bytes(setup: AnnotationSetup) -> int:
    """Size of the cached ids per frame."""
    return sum(2 * setup.tokenizers.lengths[stream.modality] for stream in setup.tokenizers.tokenized)


def _streams(setup: AnnotationSetup) -> Iterator[str]:
    yield f"  {'stream':44} {'provenance':10} {'pictures':15} ids per picture"
    for stream in setup.plan.streams:
        added = "added" if stream.store else "not kept"
        pictures = added if stream.derive else "kept, rescaled" if stream.store else "kept"
        ids = setup.tokenizers.lengths[stream.modality] if stream.tokenize else "-"
        yield f"  {stream.key:44} {stream.provenance:10} {pictures:15} {ids}"


def _networks(setup: AnnotationSetup) -> Iterator[str]:
    needed = [(f"{modality} from RGB", setup.model(modality)) for modality in setup.plan.derived]
    for part in dict.fromkeys(part for found in setup.tokenizers.parts.values() for part in found):
        purpose = f"{part} ids" if part in TOKENIZER_SOURCES else "ImageBind" if part == NETWORK else part
        needed.append((purpose, setup.tokenizers.official.source(part)))
    for purpose, source in needed:
        licence = "as in your folder" if Path(source).exists() else licence_of(source)
        yield f"  {purpose:22} {source}: {_where(source)}; licence: {licence}"


def _where(source: str) -> str:
    try:
        return f"here, {_megabytes(find_weights(source, local_files_only=True).stat().st_size)}"
    except FileNotFoundError:
        known = SOURCES.get(source)
        return f"{known.size} to download" if known else "to download"


def _costs(setup: AnnotationSetup) -> Iterator[str]:
    frames = sum(setup.lengths)
    pictures = 0.0
    for stream in setup.plan.stored:
        key = setup.plan.read_key(stream)
        like = PictureFeature.read(key, setup.source.features[key])
        pictures += frames * _BYTES_PER_PIXEL[stream.modality] * like.height * like.width
    ids = frames * id_bytes(setup)
    # shards and the joined data set exist side by side for a while; videos are copied once
    yield (
        f"Disk: ids {_megabytes(ids)}, pictures about {_megabytes(pictures)}; about "
        f"{_megabytes(3 * (ids + pictures))} free while it works, beside a copy of the source."
    )
    derived = [stream.modality for stream in setup.plan.streams if stream.derive]
    steps = derived.count(Modality.THERMAL) * setup.cfg.thermal_steps
    estimators = sum(_ESTIMATOR_GFLOP[modality] for modality in derived) + steps * _THERMAL_STEP_GFLOP
    tokenizers = sum(
        _TOKEN_GFLOP.get(part, 0.0)
        for stream in setup.tokenizers.tokenized
        for part in setup.tokenizers.parts.get(stream.modality, ())
    )
    for machine, (narrow, wide) in _MACHINES.items():
        minutes = frames * (estimators / narrow + tokenizers / wide) / 1e3 / 60
        time = f"{minutes:.1f} min" if minutes < 90 else f"{minutes / 60:.1f} h"
        yield f"Time on one {machine}: about {time} (from operation counts, not measured)"


def _megabytes(count: float) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
