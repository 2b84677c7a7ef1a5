"""Milliseconds of one look of the policy, stage by stage, against vanilla SmolVLA.

    python benchmarks/latency.py                                    # 4M-21 B, sensors
    python benchmarks/latency.py --derived="[1, 4]" --rounds=3      # also all of RGB, thermal every 4th look
    python benchmarks/latency.py --device=cuda --derived="[1, 4]"   # see gpu.sh

Official sizes with random weights: time does not depend on their values. One look is what happens between a
robot's pictures and its next chunk of actions: LeRobot's `prepare_observation_for_inference`, the
pre-processor, the policy, the post-processor. Two cameras of 640x480.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from support.measuring import Case, Machine, Series, interleave, machine_line, ratios, table, write_json
from support.network_files import DOMAINS, SCALES, policy_sizes, write_estimators
from support.policy_models import Options, PolicyFactory, Sizes
from support.policy_models import sizes as official_sizes

if TYPE_CHECKING:
    from torch import Tensor

BASELINE = "vanilla SmolVLA"
SENSORS_AIM, DERIVED_AIM = 0.9, 2.0
_HEIGHT, _WIDTH = 480, 640


@dataclass
class LatencyBenchmark:
    """Options of benchmarks/latency.py."""

    sizes: list[str] = field(default_factory=lambda: ["B"])  # of the 4M encoder: B, L
    modalities: list[int] = field(
        default_factory=lambda: [1, 2, 3, 4]
    )  # how many of RGB, depth, seg, thermal
    # With all four, three of them estimated of RGB: thermal at every k-th look. Empty = sensors deliver all.
    derived: list[int] = field(default_factory=list)
    preset: str = "official"  # or smallest (for tests)
    rounds: int = 5
    warmup: int = 1
    device: str = "cpu"  # or cuda
    dtype: str = "float32"  # bfloat16: autocast
    compile: bool = False  # language model and expert; their stages are then one
    check: bool = False  # compare each policy's chunk with that of the CPU in float32
    threads: int = 1  # of PyTorch on the CPU; 0 = PyTorch's choice
    seed: int = 0
    scratch: Path | None = None  # where a temporary folder for random weights is made (official: 8 GB)
    figure: Path | None = None  # a PNG with the stages as bars
    output: Path = Path("outputs/benchmarks/latency.json")

    def __post_init__(self) -> None:
        for name, values, allowed in (
            ("sizes", self.sizes, ("B", "L")),
            ("modalities", self.modalities, (1, 2, 3, 4)),
            ("preset", [self.preset], ("official", "smallest")),
            ("dtype", [self.dtype], ("float32", "bfloat16")),
        ):
            if not values or [v for v in values if v not in allowed]:
                raise ValueError(f"--{name}={values}: expected of {list(allowed)}.")
        if [k for k in self.derived if k < 1]:
            raise ValueError(f"--derived={self.derived}: expected numbers of looks, 1 or more.")


class Stages:
    """Which part of a look the time goes to: each second belongs to the innermost watched function.

    Args:
        wait: blocks until an accelerator is done.

    Attributes:
        seconds: case -> stage -> seconds.
    """

    def __init__(self, wait: Callable[[], object] | None):
        self._wait = wait
        self._open: list[str] = []
        self._since = 0.0
        self.seconds: dict[str, dict[str, float]] = {}
        self.begin("", anew=True)

    def begin(self, case: str, *, anew: bool) -> None:
        """From now on count for a case; ``anew`` = forget what was counted for it."""
        if anew or case not in self.seconds:
            self.seconds[case] = defaultdict(float)
        self._now = self.seconds[case]

    def watched(self, inner: Callable[..., Any], stage: str | Callable[..., str]) -> Callable[..., Any]:
        """A function whose time counts as ``stage``, a name or what makes one of the arguments."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            self._switch()
            self._open.append(stage if isinstance(stage, str) else stage(*args, **kwargs))
            try:
                return inner(*args, **kwargs)
            finally:
                self._switch()
                self._open.pop()

        return timed

    def watch(self, owner: object, function: str, stage: str | Callable[..., str]) -> None:
        """Count the time in ``owner.function``."""
        setattr(owner, function, self.watched(getattr(owner, function), stage))

    def _switch(self) -> None:
        if self._wait is not None:
            self._wait()
        now = time.perf_counter()
        if self._open:
            self._now[self._open[-1]] += now - self._since
        self._since = now


class Look:
    """A policy with its processors, and what a robot shows it.

    Args:
        policy: in evaluation mode.
        cfg: options of the benchmark.
    """

    def __init__(self, policy: Any, cfg: LatencyBenchmark):
        import torch

        from lerobot_policy_multismolvla.processor_multismolvla import make_multismolvla_pre_post_processors

        self.policy, self._device, self._dtype = policy, torch.device(policy.config.device), cfg.dtype
        ones = {"mean": torch.zeros(8), "std": torch.ones(8)}
        stats = {"observation.state": ones, "action": {k: v[:7] for k, v in ones.items()}}
        self._pre, self._post = make_multismolvla_pre_post_processors(policy.config, stats)
        self._preprocess: Callable[..., Any] = self._pre
        self._postprocess: Callable[..., Any] = self._post
        self._raw, self._canonical = _robot(policy.config.views, cfg.seed)

    def plan(self, modalities: Sequence[str]) -> Tensor:
        """The next chunk of actions (1, T, 7), with these modalities delivered."""
        import contextlib

        import torch

        autocast: Any = contextlib.nullcontext()
        if self._dtype != "float32":
            autocast = torch.autocast(self._device.type, dtype=torch.bfloat16)
        views = self.policy.config.views.values()
        absent = {key for streams in views for m, key in streams.items() if m not in modalities}
        with torch.inference_mode(), autocast:
            self.prepare({k: v for k, v in self._raw.items() if k not in absent})
            seen = {k: v for k, v in self._canonical.items() if k not in absent}
            batch = self._preprocess({**seen, "task": "pick up the red mug and place it on the plate"})
            torch.manual_seed(0)
            chunk: Tensor = self._postprocess(self.policy.predict_action_chunk(batch))
            return chunk

    def prepare(self, raw: dict[str, Any]) -> None:
        """What LeRobot does with the robot's pictures; its result has another scale for all but RGB."""
        from lerobot.policies.utils import prepare_observation_for_inference

        prepare_observation_for_inference(raw, self._device)

    def watch(self, stages: Stages, compiled: bool) -> None:
        """Count the time of all parts."""
        model, policy = self.policy.model, self.policy
        for step in self._pre.steps:
            if type(step).__name__ in ("SensorStep", "HealthStep"):
                stages.watch(step, "observation", type(step).__name__.removesuffix("Step").lower())
        self._preprocess = stages.watched(self._pre, "pre-processor")
        self._postprocess = stages.watched(self._post, "post-processor")
        stages.watch(self, "plan", "rest")  # so that a look's shares are shares of all of it
        stages.watch(self, "prepare", "prepare")
        if policy.config.uses_fourm:
            stages.watch(policy._sensors, "look", "health")
            stages.watch(model.tower, "_prepare", lambda modality, _streams: f"tokens of {modality}")
            stages.watch(model.tower, "encode", "encoder")
            stages.watch(model.bridge, "forward", "fusion and connector")
            for modality, estimator in policy._derived._loaded.items():
                stages.watch(estimator, "estimate", f"estimate of {modality}")
        if compiled:
            stages.watch(model, "sample_actions", "language model and expert")
            return
        if not policy.config.uses_fourm:
            stages.watch(model.vlm_with_expert, "embed_image", "encoder")
        stages.watch(model, "sample_actions", "prefix")
        stages.watch(model, "denoise_step", "denoising")


def _robot(views: Any, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """A robot's observation as its driver gives it, and as the pre-processor takes it."""
    import numpy as np
    import torch

    rng = np.random.default_rng(seed)
    state = rng.normal(size=8).astype(np.float32)
    raw: dict[str, Any] = {"observation.state": state}
    canonical: dict[str, Any] = {"observation.state": torch.from_numpy(state)}
    made = {
        "rgb": lambda: rng.integers(0, 256, (_HEIGHT, _WIDTH, 3), dtype=np.uint8),
        "depth": lambda: rng.uniform(0.3, 2, (_HEIGHT, _WIDTH, 1)).astype(np.float32),
        "seg": lambda: rng.integers(0, 100, (_HEIGHT, _WIDTH, 1), dtype=np.uint8),
        "thermal": lambda: rng.integers(0, 256, (_HEIGHT, _WIDTH, 3), dtype=np.uint8),
    }
    for streams in views.values():
        for modality, key in streams.items():
            raw[key] = made[modality]()
            tensor = torch.from_numpy(raw[key]).permute(2, 0, 1)
            canonical[key] = tensor.float() / 255 if modality in ("rgb", "thermal") else tensor
    return raw, canonical


@dataclass(frozen=True)
class LookCase:
    """One column of the table.

    Attributes:
        look: the policy.
        delivered: modalities that sensors deliver.
        every: thermal is estimated at every such look; a round has as many.
    """

    look: Look
    delivered: Sequence[str]
    every: int = 1

    def begin(self) -> None:
        """A new episode."""
        self.look.policy.config.refresh = {"thermal": self.every} if self.every > 1 else {}
        self.look.policy.reset()

    def __call__(self) -> Tensor:
        """A round of looks; the first one's chunk."""
        chunks = [self.look.plan(self.delivered) for _ in range(self.every)]
        return chunks[0]


class Networks:
    """Random networks of the chosen sizes, and the policies of them.

    Args:
        preset: ``official`` or ``smallest``.
        folder: for random weights.
    """

    def __init__(self, preset: str, folder: Path):
        self._tiny, self._folder = preset == "smallest", folder
        self._common = policy_sizes(SCALES[preset], folder / "tokenizers")
        self._estimators: dict[str, str] = {}

    def cases(self, cfg: LatencyBenchmark) -> dict[str, LookCase]:
        """All cases by name. Those of one size share a policy; those with estimates another one."""
        names = tuple(DOMAINS)
        cases = {BASELINE: LookCase(self._look("siglip", "B", cfg), names[:1])}
        for size in cfg.sizes:
            look = self._look("fourm", size, cfg)
            for number in cfg.modalities:
                cases[f"{size}, {'+'.join(names[:number])}"] = LookCase(look, names[:number])
            if cfg.derived:
                look = self._look("fourm", size, cfg, estimates=True)
            for every in cfg.derived:
                cases[f"{size}, all of RGB, thermal every {every}"] = LookCase(look, names[:1], every)
        return cases

    def _look(self, tower: str, size: str, cfg: LatencyBenchmark, *, estimates: bool = False) -> Look:
        place = self._folder / size
        place.mkdir(exist_ok=True)
        options = Options(list(DOMAINS), "robust", "expert", cfg.device, cfg.seed)
        policy = PolicyFactory(self._sizes(size, cfg), options, place).build(tower).eval()
        if estimates:
            self._estimate(policy.config)
        policy.reset()  # reads the estimators
        return Look(policy, cfg)

    def _estimate(self, config: Any) -> None:
        """Let a policy compute all but RGB."""
        from multismolvla.estimators import load_estimator

        if not self._estimators:
            self._estimators = write_estimators(self._folder / "estimators", tiny=self._tiny)
        for modality in tuple(DOMAINS)[1:]:
            settings = {"size": 64 if self._tiny else 256} if modality == "thermal" else {}
            made = load_estimator(modality, self._estimators[modality], **settings)
            config.estimators[modality] = asdict(made.recipe)
            config.estimator_sources[modality] = self._estimators[modality]
        config.provenance = dict.fromkeys(tuple(DOMAINS)[1:], "derived")

    def _sizes(self, size: str, cfg: LatencyBenchmark) -> Sizes:
        policy = self._common.policy | {"compile_model": cfg.compile, "compile_mode": "default"}
        bridge = self._common.bridge | {"num_labels": 134, "seg_unknown": "void"}
        sizes = replace(self._common, policy=policy, bridge=bridge, side=_HEIGHT)
        if self._tiny:
            return replace(sizes, policy=policy | {"num_steps": 2, "chunk_size": 4, "n_action_steps": 2})
        real = official_sizes("real", "robust")  # for vanilla's vision, and the vocabulary
        return replace(
            sizes,
            vlm=real.vlm,
            vocab=real.vocab,
            fourm=lambda: _official(size),
            policy=policy | real.policy,
        )


def _official(size: str) -> Any:
    from multismolvla.fourm import FourMConfig

    return FourMConfig.official(size)


def run(cfg: LatencyBenchmark) -> dict[str, Any]:
    """Build, measure, print and write. Returns what is written."""
    import torch

    if cfg.threads > 0:
        torch.set_num_threads(cfg.threads)
    wait = torch.cuda.synchronize if cfg.device.startswith("cuda") else None
    stages = Stages(wait)
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir=cfg.scratch) as scratch:
        networks = Networks(cfg.preset, Path(scratch))
        looks = networks.cases(cfg)
        chunks = {}
        for name, case in looks.items():
            case.begin()
            chunks[name] = case()  # also reads the tokenizers
        difference = _differences(networks, cfg, chunks) if cfg.check else {}
    machine = Machine()
    for look in {id(case.look): case.look for case in looks.values()}.values():
        look.watch(stages, cfg.compile)
    cases = {
        name: Case(case, units=case.every, prepare=_begin(name, case, stages, cfg.warmup), wait=wait)
        for name, case in looks.items()
    }
    series = interleave(cases, cfg.rounds, cfg.warmup, "one look")
    content: dict[str, Any] = {
        "benchmark": "latency",
        "config": asdict(cfg),
        "results": {name: own.to_dict() for name, own in series.items()},
        "ratios": ratios(series, BASELINE),
        "stages_s": {
            name: {stage: s / (cfg.rounds * case.every) for stage, s in stages.seconds[name].items()}
            for name, case in looks.items()
        },
        "difference_to_cpu": difference,
        "machine": machine.report(),
    }
    if cfg.device.startswith("cuda"):
        content["device"] = torch.cuda.get_device_name()
        content["peak_device_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
    _print(cfg, content, series)
    if cfg.figure is not None:
        draw(content["stages_s"], cfg.figure)
    write_json(cfg.output, content)
    return content


def _begin(name: str, case: LookCase, stages: Stages, warmup: int) -> Callable[[], None]:
    """Before a round: a new episode, and the warm-up's seconds forgotten."""
    rounds = itertools.count()

    def begin() -> None:
        case.begin()
        stages.begin(name, anew=next(rounds) <= warmup)

    return begin


def _differences(networks: Networks, cfg: LatencyBenchmark, chunks: Mapping[str, Tensor]) -> dict[str, float]:
    """Case -> greatest difference of its chunk from the CPU's in float32, relative to the greatest action."""
    found = {}
    for name, case in networks.cases(replace(cfg, device="cpu", dtype="float32", compile=False)).items():
        case.begin()
        reference, chunk = case().float(), chunks[name].float().cpu()
        found[name] = ((chunk - reference).abs().max() / reference.abs().max()).item()
    return found


def _print(cfg: LatencyBenchmark, content: dict[str, Any], series: dict[str, Series]) -> None:
    title = f"one look, two cameras, {cfg.device} {cfg.dtype}{', compiled' if cfg.compile else ''}"
    print(table(title, series, content["ratios"], BASELINE))
    print(stage_table(content["stages_s"]))
    for name, value in content["difference_to_cpu"].items():
        print(f"  {name}: differs from the CPU's chunk by {value:.2e} of its greatest action")
    for name, ratio in content["ratios"].items():
        aim = SENSORS_AIM if name == "B, rgb+depth+seg+thermal" else None
        if "thermal every 4" in name and cfg.device.startswith("cuda"):
            aim = DERIVED_AIM
        if aim is not None and cfg.preset == "official":
            share = ratio["wall" if cfg.device.startswith("cuda") else "cpu"]["median"]
            verdict = "met" if share <= aim else "NOT met"
            print(f"{name}: {share:.2f} of {BASELINE}, aim at most {aim}: {verdict}")
    print(machine_line(content["machine"]))


def stage_table(parts: dict[str, dict[str, float]]) -> str:
    """Milliseconds and shares per stage, a column per case."""
    stages = list(dict.fromkeys(stage for own in parts.values() for stage in own))
    width = max(map(len, stages))
    lines = [f"{number}: {name}" for number, name in enumerate(parts, start=1)]
    lines.append(f"  {'ms (share)':{width}}" + "".join(f"{n:>16}" for n in range(1, len(parts) + 1)))
    for stage in stages:
        cells = [
            f"{own[stage] * 1e3:8.1f} ({own[stage] / sum(own.values()):4.0%})" if stage in own else ""
            for own in parts.values()
        ]
        lines.append(f"  {stage:{width}}" + "".join(f"{cell:>16}" for cell in cells))
    return "\n".join(lines)


def draw(parts: dict[str, dict[str, float]], path: Path) -> None:
    """A bar per case, its stages side by side."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    stages = list(dict.fromkeys(stage for own in parts.values() for stage in own))
    figure, axes = plt.subplots(figsize=(9, 0.9 + 0.45 * len(parts)), layout="constrained")
    colors = plt.get_cmap("tab20").colors  # type: ignore[attr-defined]
    left = [0.0] * len(parts)
    for stage, color in zip(stages, colors * 2, strict=False):
        values = [own.get(stage, 0.0) for own in parts.values()]
        axes.barh(list(parts), values, left=left, label=stage, color=color)
        left = [a + b for a, b in zip(left, values, strict=True)]
    axes.invert_yaxis()
    axes.set_xlabel("seconds per look")
    axes.legend(fontsize="x-small", ncols=1, loc="center left", bbox_to_anchor=(1, 0.5))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    """Command line entry."""
    import draccus

    run(draccus.parse(LatencyBenchmark))


if __name__ == "__main__":
    main()
