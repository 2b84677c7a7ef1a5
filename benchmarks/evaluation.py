"""Episodes per hour of multismolvla-eval against lerobot-eval: same policy, task, episodes and processes.

    python benchmarks/evaluation.py                        # mini suite
    python benchmarks/evaluation.py --suite=libero_object --episodes=4 --episode_length=100  # LIBERO's assets

    python benchmarks/evaluation.py --condition=C6:rgb=policy@2   # episodes under attack against clean ones

Real processes of both programs, alternating. lerobot-eval renders RGB alone, multismolvla-eval all four
modalities. The policy is a vanilla SmolVLA of the mini preset's size with random weights: no episode
succeeds, so all have the same length.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from support.measuring import Machine, machine_line, spread, write_json

MINI = "multismolvla_mini"
LEROBOT = "lerobot-eval, rgb"
AIM = 2.0  # times the episodes per hour of lerobot-eval
SHARD = "episodes-0of1.jsonl"
POLL_S = 0.2
MEMORY_EVERY = 5  # polls; adding up the memory of many processes is not free


@dataclass
class EvaluationBenchmark:
    """Options of benchmarks/evaluation.py."""

    suite: str = MINI
    task_id: int = 0
    episodes: int = 20  # per run
    episode_length: int | None = None  # steps; None = the suite's
    size: int = 0  # side of the pictures, pixels; 0 = 64 for the mini suite and 256 otherwise
    processes: int = 2  # simulators of every program
    batch_sizes: list[int] = field(default_factory=lambda: [1, 2])  # of multismolvla-eval
    n_action_steps: int = 8  # of chunks of 16, as in configs/mini.yaml
    clips: int = 0  # tasks whose first three episodes multismolvla-eval films, rendering every third frame
    # Instead of that: episodes under a condition against those of C0, the same starts, in one run of
    # multismolvla-eval with batch size 1.
    condition: str | None = None
    rounds: int = 3
    libero_assets: str | None = None  # default: MULTISMOLVLA_LIBERO_ASSETS, then hf-libero's places
    output: Path = Path("outputs/benchmarks/evaluation.json")

    def __post_init__(self) -> None:
        for name in ("episodes", "processes", "n_action_steps", "rounds"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name}={getattr(self, name)} must be at least 1.")


@dataclass
class Run:
    """One run of one program.

    Attributes:
        wall_s: from start to end of the program.
        steady_s: from the first reset to the end of the last episode, without imports and loading.
        memory_gib: largest sum over its processes of the memory that is theirs alone.
        shares: where the episodes' time went, by part; empty for lerobot-eval.
    """

    wall_s: float
    steady_s: float
    memory_gib: float
    shares: dict[str, float]


def run(cfg: EvaluationBenchmark) -> dict[str, Any]:
    """Measure, print and write. Returns what is written."""
    from tqdm import tqdm

    if cfg.condition is not None:
        return _run_condition(cfg, cfg.condition)
    names = [LEROBOT, *(_ours(n) for n in cfg.batch_sizes)]
    runs: dict[str, list[Run]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory(prefix="evaluation-") as scratch:
        policy = _make_policy(Path(scratch) / "policy", cfg)
        machine = Machine()
        with tqdm(
            total=cfg.rounds * len(names), desc=f"{cfg.suite}: {cfg.episodes} episodes", unit="run"
        ) as bar:
            for number in range(cfg.rounds):
                for name in names if number % 2 == 0 else names[::-1]:
                    folder = Path(scratch) / f"{number}-{names.index(name)}"
                    measure = _run_lerobot if name == LEROBOT else _run_ours
                    batch_size = 1 if name == LEROBOT else cfg.batch_sizes[names.index(name) - 1]
                    runs[name].append(measure(cfg, policy, folder, batch_size))
                    bar.set_postfix_str(f"{name} {runs[name][-1].steady_s:.3g} s")
                    bar.update()
        report = machine.report()
    report.pop("peak_rss_gib")  # of this process, which measures nothing itself
    content = {
        "benchmark": "evaluation",
        "config": asdict(cfg),
        "runs": {name: [asdict(r) for r in own] for name, own in runs.items()},
        "speed": {name: _against(own, runs[LEROBOT]) for name, own in runs.items() if name != LEROBOT},
        "aim": AIM,
        "machine": report,
    }
    _print(cfg, runs, content)
    write_json(cfg.output, content)
    return content


def _run_condition(cfg: EvaluationBenchmark, condition: str) -> dict[str, Any]:
    """How many times as long an episode takes under a condition; both run at once in every round."""
    seconds: dict[str, list[float]] = {"C0": [], condition: []}  # of an episode, one number per round
    with tempfile.TemporaryDirectory(prefix="evaluation-") as scratch:
        policy = _make_policy(Path(scratch) / "policy", cfg)
        machine = Machine()
        for number in range(cfg.rounds):
            folder = Path(scratch) / str(number)
            words = [f"--conditions=[{condition}]", f"--episodes={cfg.episodes}"]
            _watch(_command(cfg, policy, folder, 1, words), folder.with_suffix(".log"))
            rows = [json.loads(line) for line in (folder / SHARD).open()]
            for name, own in seconds.items():
                times = [row["seconds"]["total"] for row in rows if row["condition"] == name]
                own.append(spread(times)["median"])  # the first episode waits for the simulator to be built
        report = machine.report()
    longer = [attacked / clean for clean, attacked in zip(*seconds.values(), strict=True)]
    content = {
        "benchmark": "evaluation",
        "config": asdict(cfg),
        "seconds_per_episode": seconds,
        "longer": spread(longer),
        "machine": report,
    }
    for name, own in seconds.items():
        print(f"{name}: {3600 * cfg.processes / spread(own)['median']:.0f} episodes/h")
    ratio = spread(longer)
    print(f"an episode takes {ratio['median']:.2f} ({ratio['q25']:.2f} - {ratio['q75']:.2f}) times as long")
    print(machine_line(report))
    write_json(cfg.output, content)
    return content


def _ours(batch_size: int) -> str:
    return f"multismolvla-eval, all four, batch size {batch_size}"


def _against(own: list[Run], lerobot: list[Run]) -> dict[str, dict[str, float]]:
    """How many times as many episodes per hour, round by round."""
    return {
        kind: spread([getattr(b, kind) / getattr(a, kind) for a, b in zip(own, lerobot, strict=True)])
        for kind in ("wall_s", "steady_s")
    }


def _make_policy(folder: Path, cfg: EvaluationBenchmark) -> Path:
    """A vanilla SmolVLA with the sizes of the mini preset and random weights, with its processors."""
    import torch
    from lerobot.policies.factory import make_pre_post_processors
    from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
    from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
    from support.policy_models import Options, PolicyFactory, sizes

    preset = sizes("tiny", "robust")
    folder.mkdir(parents=True)
    factory = PolicyFactory(preset, Options(["rgb"], "robust", "lora", "cpu", 0), folder)
    options = {k: v for k, v in preset.policy.items() if k != "flow_samples"}
    options["n_action_steps"] = min(cfg.n_action_steps, options["chunk_size"])
    torch.manual_seed(0)
    policy = SmolVLAPolicy(
        SmolVLAConfig(
            vlm_model_name=str(folder / "vlm"), load_vlm_weights=False, device="cpu", push_to_hub=False,
            input_features=factory._features("siglip"), output_features=factory._action(), **options,
        )
    )  # fmt: skip
    stats = {
        k: {"mean": torch.zeros(n), "std": torch.ones(n)}
        for k, n in (("observation.state", 8), ("action", 7))
    }
    policy.save_pretrained(folder / "checkpoint")
    for processor in make_pre_post_processors(policy.config, dataset_stats=stats):
        processor.save_pretrained(folder / "checkpoint")
    return folder / "checkpoint"


def _environment(cfg: EvaluationBenchmark) -> dict[str, int | str]:
    """Options of the environment that both programs share."""
    side = cfg.size or (64 if cfg.suite == MINI else 256)
    options: dict[str, int | str] = {"observation_height": side, "observation_width": side}
    if cfg.episode_length is not None:
        options["episode_length"] = cfg.episode_length
    if cfg.libero_assets is not None:
        options["libero_assets"] = cfg.libero_assets
    return options


def _run_lerobot(cfg: EvaluationBenchmark, policy: Path, folder: Path, batch_size: int) -> Run:
    """lerobot-eval with asynchronous environments; it also films ten episodes, which no option prevents."""
    del batch_size
    options = {f"env.{k}": v for k, v in _environment(cfg).items()}
    wall, memory = _watch(
        [
            sys.executable, "-m", "lerobot.scripts.lerobot_eval", f"--policy.path={policy}",
            "--policy.device=cpu", "--env.type=multismolvla_libero", f"--env.task={cfg.suite}",
            f"--env.task_ids=[{cfg.task_id}]", "--env.streams=[rgb]", f"--eval.n_episodes={cfg.episodes}",
            f"--eval.batch_size={cfg.processes}", "--eval.use_async_envs=true", f"--output_dir={folder}",
            *(f"--{k}={v}" for k, v in options.items()),
        ],
        folder.with_suffix(".log"),
    )  # fmt: skip
    info = json.loads((folder / "eval_info.json").read_text())
    return Run(wall, info["overall"]["eval_s"], memory, {})


def _run_ours(cfg: EvaluationBenchmark, policy: Path, folder: Path, batch_size: int) -> Run:
    """multismolvla-eval with all modalities."""
    first: list[float] = []
    shard = folder / SHARD

    def look() -> None:  # the first row tells when its episode began
        if not first and shard.is_file() and shard.read_bytes().count(b"\n"):
            first.append(time.perf_counter() - json.loads(shard.open().readline())["seconds"]["total"])

    command = _command(cfg, policy, folder, batch_size, ["--conditions=[]"])
    wall, memory = _watch(command, folder.with_suffix(".log"), look)
    steady = time.perf_counter() - first[0]
    rows = [json.loads(line) for line in shard.open()]
    seconds = {k: sum(r["seconds"][k] for r in rows) for k in rows[0]["seconds"]}
    total = seconds.pop("total")
    parts = {
        "physics, resets": seconds["env"],
        "rendering": seconds["render"],
        "policy": seconds["policy"],
        "clip": seconds["clip"],
    }
    return Run(wall, steady, memory, {k: v / total for k, v in parts.items()})


def _command(
    cfg: EvaluationBenchmark, policy: Path, folder: Path, batch_size: int, conditions: list[str]
) -> list[str]:
    return [
        sys.executable, "-m", "multismolvla_eval.evaluate", f"--policies=[vanilla={policy}]", *conditions,
        f"--env.task={cfg.suite}", f"--env.task_ids=[{cfg.task_id}]",
        f"--env.options={json.dumps(_environment(cfg))}", f"--clean_episodes={cfg.episodes}",
        "--clean_repeats=1", f"--workers={cfg.processes}", f"--batch_size={batch_size}",
        f"--clips={cfg.clips}", f"--output={folder}",
    ]  # fmt: skip


def _watch(command: list[str], log: Path, look: Any = None) -> tuple[float, float]:
    """Run a program; its seconds and the largest memory of its process tree [GiB].

    Raises:
        RuntimeError: it failed; the message holds the end of its output.
    """
    import psutil

    started, peak, polls = time.perf_counter(), 0, 0
    with open(log, "w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=dict(os.environ))
        tree = psutil.Process(process.pid)
        while process.poll() is None:
            if look is not None:
                look()
            if polls % MEMORY_EVERY == 0:
                peak = max(peak, _own_memory(tree))
            polls += 1
            time.sleep(POLL_S)
    if process.returncode != 0:
        raise RuntimeError(
            f"{' '.join(command[:3])} ended with {process.returncode}:\n{log.read_text()[-2000:]}"
        )
    return time.perf_counter() - started, peak / 2**30


def _own_memory(tree: Any) -> int:
    """Bytes that the processes of a tree do not share with others."""
    import psutil

    total = 0
    try:
        for member in [tree, *tree.children(recursive=True)]:
            total += member.memory_full_info().uss
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0  # one of them ended meanwhile; the next look counts
    return total


def _print(cfg: EvaluationBenchmark, runs: dict[str, list[Run]], content: dict[str, Any]) -> None:
    side = _environment(cfg)["observation_width"]
    print(f"\n{cfg.suite}, task {cfg.task_id}, {side} px, {cfg.episodes} episodes, ", end="")
    print(f"{cfg.processes} simulators, {cfg.rounds} rounds")
    width = max(map(len, runs))
    print(f"  {'':{width}}  {'episodes/h':>10}  {'with loading':>12}  {'memory':>9}  speed, with loading")
    for name, own in runs.items():
        steady, wall, memory = (
            spread([getattr(r, k) for r in own])["median"] for k in ("steady_s", "wall_s", "memory_gib")
        )
        per_hour, with_loading = 3600 * cfg.episodes / steady, 3600 * cfg.episodes / wall
        line = f"  {name:{width}}  {per_hour:10.0f}  {with_loading:12.0f}  {memory:5.2f} GiB"
        if name != LEROBOT:
            speed, whole = (content["speed"][name][k] for k in ("steady_s", "wall_s"))
            line += (
                f"  {speed['median']:.2f} ({speed['q25']:.2f} - {speed['q75']:.2f}), {whole['median']:.2f}"
            )
        print(line)
    for name, own in runs.items():
        if own[0].shares:
            shares = {k: spread([r.shares[k] for r in own])["median"] for k in own[0].shares}
            print(f"  {name}: " + ", ".join(f"{k} {v:.0%}" for k, v in shares.items()))
    best = max(s["steady_s"]["median"] for s in content["speed"].values())
    print(f"aim of {AIM:g} times lerobot-eval: {'met' if best >= AIM else 'NOT met'} ({best:.2f})")
    print(machine_line({**content["machine"], "peak_rss_gib": "-"}))


def main() -> None:
    """Command line entry."""
    import draccus

    run(draccus.parse(EvaluationBenchmark))


if __name__ == "__main__":
    main()
