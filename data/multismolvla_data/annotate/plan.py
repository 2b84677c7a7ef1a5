"""What ``multismolvla-annotate`` prints before it works: streams, downloads with licences, disk and time."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from multismolvla.modalities import Modality
from multismolvla.pretrained import SOURCES, TOKENIZER_SOURCES, licence_of
from multismolvla.tokenizers.recipe import NETWORK
from multismolvla.weights import find_weights
from multismolvla_data.annotate.job import Job

#: Operations per picture in GFLOP, of the default networks at their default sizes (computed from their configurations).
_DEPTH_GFLOP, _SEG_GFLOP = 90.0, 220.0
_THERMALGEN_GFLOP = {"XL": 322.0, "L": 220.0, "B": 63.0}
_AUTOENCODER_GFLOP = 895.0
_TOKEN_GFLOP = {"depth": 37.0, "seg": 42.0, "network": 325.0, "imagebind": 49.0, "imagebind_global": 0.1}
#: Sustained TFLOP/s that the estimate assumes: (estimators in bfloat16, tokenizers in float32).
_MACHINES = {"H100-class GPU": (200.0, 30.0), "RTX 4090-class GPU": (60.0, 30.0), "16 CPU cores": (0.5, 0.5)}


def describe(job: Job) -> str:
    """The plan in words, for the terminal; asks no network.

    Returns:
        Text of several lines: streams with provenance, networks with size and licence, disk, time and the policy's options.
    """
    lines = [
        f"{job.source.root}: {len(job.episodes)} episodes, {sum(job.lengths)} frames -> {job.cfg.output}",
        "",
        *_streams(job),
        *(f"  note: {note}" for note in job.plan.notes),
        "",
        *_networks(job),
        "",
        *_costs(job),
        "",
        "Options of the policy for the new dataset:",
        *(f"  {line}" for line in policy_options(job)),
    ]
    return "\n".join(lines)


def policy_options(job: Job) -> list[str]:
    """Command-line options with which a policy reads the new dataset."""
    given = {k: v if isinstance(v, str | int) else json.dumps(v) for k, v in job.policy_options().items()}
    return [
        *(f"--policy.{name}={shlex.quote(str(value))}" for name, value in given.items()),
        "--dataset.depth_output_unit=m",
    ]


def _streams(job: Job) -> list[str]:
    lines = [f"  {'stream':44} {'provenance':8} {'pictures':18} ids per picture"]
    for stream in job.plan.streams:
        pictures = "added" if stream.derive and stream.store else "not kept" if stream.derive else "kept"
        pictures = "kept, rescaled" if not stream.derive and stream.store else pictures
        ids = str(job.id_lengths[stream.modality]) if stream.tokenize else "-"
        lines.append(f"  {stream.key:44} {stream.provenance:8} {pictures:18} {ids}")
    return lines


def _networks(job: Job) -> list[str]:
    lines = ["Networks (downloaded where they are not here yet):"]
    needed = [(f"{m} from RGB", job.model(m)) for m in job.plan.derived()]
    parts = dict.fromkeys(p for found in job.parts.values() for p in found)
    needed += [
        (
            f"{part} ids" if part in TOKENIZER_SOURCES else "ImageBind" if part == NETWORK else part,
            job.cfg.official.source(part),
        )
        for part in parts
    ]
    for purpose, source in needed:
        licence = "as in your folder" if Path(source).exists() else licence_of(source)
        lines.append(f"  {purpose:22} {source}: {_where(source)}; licence: {licence}")
    return lines if needed else ["Networks: none."]


def _where(source: str) -> str:
    try:
        path = find_weights(source, local_files_only=True)
    except FileNotFoundError:
        known = SOURCES.get(source)
        return f"{known.size_bytes / 1e9:.2f} GB to download ({known.known})" if known else "to download"
    return f"here, {_size(path.stat().st_size)}"


def _costs(job: Job) -> list[str]:
    frames = sum(job.lengths)
    ids, pictures = job.bytes_per_frame() * frames, job.picture_bytes() * frames
    # shards and the joined dataset exist side by side for a while; videos are copied once
    free = 3 * (ids + pictures)
    lines = [
        f"Disk: ids {_size(ids)}, pictures about {_size(pictures)}; about {_size(free)} free while it works, beside a copy of the source."
    ]
    lines += [
        f"Time on one {machine}: about {_duration(_seconds(job, rate))} (from operation counts, not measured)"
        for machine, rate in _MACHINES.items()
    ]
    return lines


def _seconds(job: Job, rate: tuple[float, float]) -> float:
    estimate = tokenize = 0.0
    for stream in job.plan.streams:
        if stream.derive:
            estimate += _estimator_gflop(job, stream.modality)
        if stream.tokenize:
            tokenize += sum(_TOKEN_GFLOP.get(part, 0.0) for part in job.parts.get(stream.modality, ()))
    per_frame = estimate / (rate[0] * 1e3) + tokenize / (rate[1] * 1e3)
    return per_frame * sum(job.lengths)


def _estimator_gflop(job: Job, modality: str) -> float:
    if modality == Modality.DEPTH:
        return _DEPTH_GFLOP
    if modality == Modality.SEG:
        return _SEG_GFLOP
    arch = next((a for a in _THERMALGEN_GFLOP if f"-{a}-" in job.cfg.thermal_model), "XL")
    per_step: dict[str, int] = {"midpoint": 2, "heun": 2, "rk4": 4}
    evaluations = (
        50
        if job.cfg.thermal_method == "dopri5"
        else job.cfg.thermal_steps * per_step.get(job.cfg.thermal_method, 1)
    )
    guided = 2 if job.cfg.thermal_cfg_scale > 1 else 1
    return _AUTOENCODER_GFLOP + guided * evaluations * _THERMALGEN_GFLOP[arch]


def _size(count: float) -> str:
    unit = next(
        (u for u in ("B", "kB", "MB", "GB") if count < 1000 ** (("B", "kB", "MB", "GB").index(u) + 1)), "TB"
    )
    return f"{count / 1000 ** ('B', 'kB', 'MB', 'GB', 'TB').index(unit):.1f} {unit}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
