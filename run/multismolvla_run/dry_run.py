"""``python train.py PRESET --dry-run``: what would be fetched, run and needed. Asks no network and starts nothing."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from multismolvla.pretrained import SOURCES, is_hub_id, licence_of, needed_by
from multismolvla_run.estimate import ASSUMPTIONS, GPUS, Estimate, estimate
from multismolvla_run.hub import cache_folder, is_cached
from multismolvla_run.presets import Preset, Stage, dataset_id
from multismolvla_run.process import show_command
from multismolvla_run.stages import Action, Run, Step


def describe(run: Run, steps: Sequence[Step]) -> str:
    """The whole answer.

    Args:
        run: preset, folders and wishes.
        steps: the stages with their decisions.
    """
    run = dataclasses.replace(run, preset=_with_extra(run), extra={})
    parts = [
        f"{run.preset.name}: {run.preset.description}",
        *_downloads(run.preset),
        *_data(run),
        *_stages(steps),
    ]
    return "\n".join([*parts, *_needs(run, steps)])


def _with_extra(run: Run) -> Preset:
    """The preset with the additional arguments of the command line among its own."""
    stages = []
    for stage in run.preset.stages:
        words = (word.removeprefix("--").partition("=") for word in run.extra_for(stage))
        extra = {key: yaml.safe_load(value) for key, _, value in words}
        stages.append(dataclasses.replace(stage, args={**stage.args, **extra}))
    return dataclasses.replace(run.preset, stages=tuple(stages))


def policy_options(preset: Preset, stage: Stage) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options of policy and adapters that a training stage ends up with, without their prefixes.

    A stage that starts from another one's checkpoint (``policy.path``) keeps that one's options where it sets none.
    """
    own = _strip(stage.args, "policy.")
    path = str(own.pop("path", ""))
    if path.startswith("{stage:"):
        before = preset.stage(path.removeprefix("{stage:").removesuffix("}"))
        own = policy_options(preset, before)[0] | own
    return own, _strip(stage.args, "peft.")


def sources(preset: Preset) -> dict[str, str]:
    """Hub id -> purpose, for everything that the training stages of a preset read; local folders are left out."""
    found: dict[str, str] = {}
    for stage in preset.stages:
        if stage.trains:
            found |= needed_by(policy_options(preset, stage)[0])
    return {where: purpose for where, purpose in found.items() if is_hub_id(where)}


def _strip(args: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {key.removeprefix(prefix): value for key, value in args.items() if key.startswith(prefix)}


def _downloads(preset: Preset) -> Iterator[str]:
    found = sources(preset)
    if not found:
        yield "\nNothing is downloaded: every model is made on the spot or read from a folder."
        return
    yield f"\nFrom the model hub (cache: {cache_folder()}); nothing is fetched now:"
    missing = 0
    for repo, purpose in found.items():
        missing += _bytes_to_fetch(repo)
        yield from _download(repo, purpose)
    yield f"  still to fetch: {missing / 1e9:.1f} GB. Fetch one by hand with `hf download REPOSITORY`."
    if any("tok" in repo or "imagebind" in repo for repo in found):
        yield "  Tokenizers and ImageBind are not read while training from cached ids; they are when the policy acts."


def _download(repo: str, purpose: str) -> Iterator[str]:
    source = SOURCES.get(repo)
    size = source.size if source else "size unknown"
    yield f"  {'cached' if is_cached(repo) else 'to fetch':<9}{size:>18}  {repo}: {purpose}"
    yield f"{'':31}licence: {licence_of(repo)}"


def _bytes_to_fetch(repo: str) -> int:
    """What is known of it; 0 for what is in the cache."""
    return SOURCES[repo].size_bytes if repo in SOURCES and not is_cached(repo) else 0


def _data(run: Run) -> Iterator[str]:
    if not any(stage.uses_dataset() for stage in run.preset.stages):
        return
    there = dataset_id(run.dataset) is not None
    yield f"\nData: {run.dataset} ({'there' if there else 'missing'})"
    if not there:
        yield from (f"  {line}" for line in how_to_make(run.preset, run.dataset))
        if run.preset.downloads:
            yield "  which reads, beside what training reads:"
        for name, purpose in run.preset.downloads.items():
            if name in SOURCES:
                yield from _download(name, purpose)
            else:  # a data set: its terms and size are what the preset says
                yield f"  {'data set':<9}{'':18}  {name}: {purpose}"


def how_to_make(preset: Preset, dataset: Path) -> list[str]:
    """The preset's commands that make its dataset, or the recorder's."""
    commands = preset.make_dataset or ("multismolvla-record --output={dataset}",)
    return ["make it with:", *("  " + line.replace("{dataset}", str(dataset)) for line in commands)]


def _stages(steps: Sequence[Step]) -> Iterator[str]:
    for number, step in enumerate(steps, start=1):
        yield f"\n[{number}/{len(steps)}] {step.stage.name}: {step.action}"
        if step.command:
            yield show_command(step.command)


def _needs(run: Run, steps: Sequence[Step]) -> Iterator[str]:
    found = sources(run.preset)
    if not found:
        return
    yield f"\nNeeds, computed and not measured. Assumed: {ASSUMPTIONS}."
    yield "  One GPU each; h: hours at the stage's batch size; batch sizes are tried in powers of two."
    there = dataset_id(run.dataset) is not None
    disk = sum(_bytes_to_fetch(r) for r in [*found, *({} if there else run.preset.downloads)]) / 1e9
    for step in steps:
        if not step.stage.trains:
            continue
        wanted, lines = _stage_needs(run.preset, run.preset.stage(step.stage.name))
        yield from lines
        disk += 0 if step.action is Action.SKIP else wanted
    existing = next(p for p in (run.out.absolute(), *run.out.absolute().parents) if p.exists())
    free = shutil.disk_usage(existing).free / 1e9
    verdict = "" if free > disk else ": NOT ENOUGH"
    yield f"  disk: {disk:.0f} GB for downloads and checkpoints, without data; {free:.0f} GB are free{verdict}"


def _stage_needs(preset: Preset, stage: Stage) -> tuple[float, list[str]]:
    """Gigabytes on the disk, and the lines about one training stage."""
    assert stage.steps is not None
    try:
        made = estimate(*policy_options(preset, stage))
    except ValueError as error:
        return 0.0, [f"  {stage.name}: no estimate. {error}"]
    batch, every = int(stage.args.get("batch_size", 8)), int(stage.args.get("save_freq", 20_000))
    checkpoints = -(-stage.steps // every)
    lines = [
        f"  {stage.name}: {stage.steps} steps of batch size {batch}; {made.parameters / 1e6:.0f} M parameters, "
        f"{made.trained / 1e6:.1f} M trained; {made.memory_gb(batch):.0f} GB of GPU memory; "
        f"{checkpoints} checkpoints of {made.checkpoint_gb:.1f} GB"
    ]
    lines += [f"    {_gpu_line(made, gpu, batch, stage.steps)}" for gpu in GPUS]
    return checkpoints * made.checkpoint_gb, lines


def _gpu_line(made: Estimate, gpu: Any, batch: int, steps: int) -> str:
    largest = made.largest_batch(gpu)
    name = f"{gpu.memory_gb:>3} GB ({gpu.model})"
    if largest == 0:
        return f"{name:<20} too small"
    fits = f"fits {largest}" if largest <= batch else f"fits {batch} and up to {largest}"
    less = f" (take --batch_size={largest} and {batch // largest} times the steps)" if largest < batch else ""
    return f"{name:<20} {fits:<22} {made.hours(gpu, batch, steps):6.1f} h{less}"
