"""``python train.py PRESET --dry-run``: what would be fetched, run and needed. Asks no network."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence

import msgspec
import yaml

from multismolvla.pretrained import SOURCES, is_hub_id, licence_of, needed_by
from multismolvla.system.command import parse_options
from multismolvla_run.estimate import ASSUMPTIONS, GPUS, Estimate, Gpu, estimate
from multismolvla_run.hub import cache_folder, is_cached
from multismolvla_run.presets import Options, Preset, PresetError, Stage, dataset_id, resolve_args
from multismolvla_run.process import show_command
from multismolvla_run.stages import Action, Step, TrainingRun


def dry_run_text(run: TrainingRun, steps: Sequence[Step]) -> str:
    """The whole answer for a run and the decisions on its stages."""
    preset = _with_extra(run)
    run = dataclasses.replace(run, preset=preset, extra={})
    fetched = dict(sources(preset))
    there = dataset_id(run.dataset) is not None
    return "\n".join(
        [
            f"{preset.name}: {preset.description}",
            *_downloads(fetched),
            *_data(run, there),
            *_stages(steps, run.environment()),
            *(_needs(run, steps, {**fetched, **({} if there else preset.downloads)}) if fetched else ()),
            *_measured_hours(run, steps),
        ]
    )


def _with_extra(run: TrainingRun) -> Preset:
    """The preset with the additional arguments of the command line among its own."""
    stages = []
    for stage in run.preset.stages:
        words = (word.removeprefix("--").partition("=") for word in run.extra_for(stage))
        extra = {key: yaml.safe_load(value) for key, _, value in words}
        stages.append(msgspec.structs.replace(stage, args={**stage.args, **extra}))
    return msgspec.structs.replace(run.preset, stages=tuple(stages))


def policy_options(preset: Preset, stage: Stage) -> tuple[Options, Options]:
    """Options of policy and adapters that a training stage ends up with, without their prefixes.

    A stage that starts from another one's checkpoint inherits the options that it does not set.
    """
    own = _below("policy.", stage.args)
    path = str(own.get("path", ""))
    if path.startswith("{stage:"):
        before = preset.stage(path.removeprefix("{stage:").removesuffix("}"))
        own = {**policy_options(preset, before)[0], **own}
    return {key: value for key, value in own.items() if key != "path"}, _below("peft.", stage.args)


def check_training_options(run: TrainingRun) -> None:
    """Read the options of every training stage as lerobot-train will; the policy's where its type is said.

    Raises:
        PresetError: an option that does not exist, or a value that is refused; names the stage.
    """
    from lerobot.configs.policies import PreTrainedConfig
    from lerobot.configs.train import TrainPipelineConfig
    from lerobot.utils.import_utils import register_third_party_plugins

    register_third_party_plugins()
    preset = _with_extra(run)
    for stage in preset.stages:
        if not stage.trains:
            continue
        policy = dict(policy_options(preset, stage)[0])
        others = {key: value for key, value in stage.args.items() if not key.startswith("policy.")}
        _check(TrainPipelineConfig, "", run, msgspec.structs.replace(stage, args=others))
        kind = policy.pop("type", None)
        if kind is None:
            continue
        if kind not in PreTrainedConfig.get_known_choices():
            raise PresetError(f"Stage {stage.name!r}: --policy.type={kind} is no policy that LeRobot knows.")
        chosen = PreTrainedConfig.get_choice_class(str(kind))
        _check(chosen, "policy.", run, msgspec.structs.replace(stage, args=policy))


def _check(kind: type, prefix: str, run: TrainingRun, stage: Stage) -> None:
    """Read a stage's arguments as an object of a class, whose options are told with a prefix."""
    words = list(resolve_args(run.preset, stage, run.out, run.dataset))
    told = io.StringIO()
    logging.disable(logging.WARNING)  # of the device: the stage's process will say it
    try:
        with contextlib.redirect_stderr(told):
            parse_options(kind, words)
    except SystemExit:
        _, found, unknown = told.getvalue().strip().rpartition("unrecognized arguments: ")
        problem = f"lerobot-train does not know {unknown.replace('--', f'--{prefix}')}." if found else unknown
        raise PresetError(f"Stage {stage.name!r}: {problem}") from None
    except ValueError as error:
        raise PresetError(f"Stage {stage.name!r}: {' '.join(str(error).split())}") from error
    finally:
        logging.disable(logging.NOTSET)


def _below(prefix: str, args: Options) -> Options:
    return {key.removeprefix(prefix): value for key, value in args.items() if key.startswith(prefix)}


def sources(preset: Preset) -> Iterator[tuple[str, str]]:
    """(hub id, purpose) of everything that the training stages read; local folders are left out."""
    for stage in preset.stages:
        if stage.trains:
            needed = needed_by(policy_options(preset, stage)[0])
            yield from ((where, purpose) for where, purpose in needed.items() if is_hub_id(where))


def _downloads(fetched: dict[str, str]) -> Iterator[str]:
    if not fetched:
        yield "\nNothing is downloaded: every model is made on the spot or read from a folder."
        return
    yield f"\nFrom the model hub (cache: {cache_folder()}); nothing is fetched now:"
    for repo, purpose in fetched.items():
        yield from _download(repo, purpose)
    missing = sum(map(_bytes_to_fetch, fetched)) / 1e9
    yield f"  still to fetch: {missing:.1f} GB. Fetch one by hand with `hf download REPOSITORY`."
    if any("tok" in repo or "imagebind" in repo for repo in fetched):
        yield "  Tokenizers and ImageBind are read when the policy acts, not while it trains on cached ids."


def _download(repo: str, purpose: str) -> Iterator[str]:
    size = SOURCES[repo].size if repo in SOURCES else "size unknown"
    yield f"  {'cached' if is_cached(repo) else 'to fetch':<9}{size:>18}  {repo}: {purpose}"
    yield f"{'':31}licence: {licence_of(repo)}"


def _bytes_to_fetch(repo: str) -> int:
    """What is known of it; 0 for what is in the cache."""
    return SOURCES[repo].size_bytes if repo in SOURCES and not is_cached(repo) else 0


def _data(run: TrainingRun, there: bool) -> Iterator[str]:
    needed = [found for stage in run.preset.stages for found in stage.datasets(run.dataset)]
    if not needed:
        return
    yield ""
    for dataset in dict.fromkeys(needed):
        yield f"Data: {dataset} ({'missing' if dataset_id(dataset) is None else 'there'})"
    if there:
        return
    yield from (f"  {line}" for line in how_to_make(run.preset, run.dataset))
    if run.preset.downloads:
        yield "  which reads, beside what training reads:"
    for name, purpose in run.preset.downloads.items():
        if name in SOURCES:
            yield from _download(name, purpose)
        else:  # a data set: its terms and size are what the preset says
            yield f"  {'data set':<9}{'':18}  {name}: {purpose}"


def how_to_make(preset: Preset, dataset: object) -> list[str]:
    """The preset's commands that make its dataset, or the recorder's."""
    commands = preset.make_dataset or ("multismolvla-record --output={dataset}",)
    return ["make it with:", *("  " + line.replace("{dataset}", str(dataset)) for line in commands)]


def _stages(steps: Sequence[Step], env: Mapping[str, str]) -> Iterator[str]:
    for number, step in enumerate(steps, start=1):
        yield f"\n[{number}/{len(steps)}] {step.stage.name}: {step.action}"
        if step.command:
            yield show_command(step.command, env)


def _needs(run: TrainingRun, steps: Sequence[Step], fetched: dict[str, str]) -> Iterator[str]:
    yield f"\nNeeds, computed and not measured. Assumed: {ASSUMPTIONS}."
    yield "  One GPU each; h: hours at the stage's batch size; batch sizes are tried in powers of two."
    disk = sum(map(_bytes_to_fetch, fetched)) / 1e9
    for step in steps:
        stage = run.preset.stage(step.stage.name)
        if not stage.trains or stage.steps is None:
            continue
        try:
            made = estimate(*policy_options(run.preset, stage))
        except ValueError as error:
            yield f"  {stage.name}: no estimate. {error}"
            continue
        # the defaults are lerobot-train's
        batch, every = _number(stage.args, "batch_size", 8), _number(stage.args, "save_freq", 20_000)
        workers = _number(stage.args, "num_workers", 4)
        checkpoints = -(-stage.steps // every)
        yield (
            f"  {stage.name}: {stage.steps} steps of batch size {batch}; "
            f"{made.parameters / 1e6:.0f} M parameters, {made.trained / 1e6:.1f} M trained; "
            f"{made.memory_gb(batch):.0f} GB of GPU memory; "
            f"{checkpoints} checkpoints of {made.checkpoint_gb:.1f} GB"
        )
        yield from (f"    {_gpu_line(made, gpu, batch, stage.steps, workers)}" for gpu in GPUS)
        disk += 0 if step.action is Action.SKIP else checkpoints * made.checkpoint_gb
    existing = next(p for p in (run.out.absolute(), *run.out.absolute().parents) if p.exists())
    free = shutil.disk_usage(existing).free / 1e9
    verdict = "" if free > disk else ": NOT ENOUGH"
    wanted = f"{disk:.0f} GB for downloads and checkpoints, without data"
    yield f"  disk: {wanted}; {free:.0f} GB are free{verdict}"


def _measured_hours(run: TrainingRun, steps: Sequence[Step]) -> Iterator[str]:
    """What is left to compute, for presets that say what it takes; empty for others."""
    hours = {}
    if run.preset.make_dataset_core_seconds and dataset_id(run.dataset) is None:
        hours["the data set"] = run.preset.make_dataset_core_seconds / 3600
    for step in steps:
        stage = run.preset.stage(step.stage.name)
        left = (stage.steps or _number(stage.args, "steps", 0)) - step.resume_step
        if step.action is not Action.SKIP and (stage.core_seconds or stage.core_seconds_per_step):
            hours[stage.name] = (stage.core_seconds + left * stage.core_seconds_per_step) / 3600
    if not hours:
        return
    yield (
        "\nHours of one core, from measured processor time. Two free cores need half to all of that; on a "
        "machine that does other work, too, half as much again:"
    )
    yield from (f"  {name:<18}{needed:5.2f} h" for name, needed in hours.items())
    yield f"  {'together':<18}{sum(hours.values()):5.2f} h"


def _number(args: Options, name: str, default: int) -> int:
    """A whole number among a stage's options.

    Raises:
        ValueError: it is something else.
    """
    value = args.get(name, default)
    if not isinstance(value, int):
        raise ValueError(f"--{name}={value!r}: expected a whole number.")
    return value


def _gpu_line(made: Estimate, gpu: Gpu, batch: int, steps: int, workers: int) -> str:
    largest = made.largest_batch(gpu)
    name = f"{gpu.memory_gb:>3} GB ({gpu.model})"
    if largest == 0:
        return f"{name:<20} too small"
    fits = f"fits {largest}" if largest <= batch else f"fits {batch} and up to {largest}"
    less = f" (take --batch_size={largest} and {batch // largest} times the steps)" if largest < batch else ""
    slow = made.loading_s(batch, workers) > made.computing_s(gpu, batch)
    waits = f", loading decides: more than --num_workers={workers} would be faster" if slow else ""
    return f"{name:<20} {fits:<22} {made.hours(gpu, batch, steps, workers):6.1f} h{less}{waits}"
