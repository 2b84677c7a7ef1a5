"""Simulator steps per second with one to four streams per camera, against RGB alone.

    python benchmarks/simulator.py                         # mini suite
    python benchmarks/simulator.py --suite=libero_object  # needs LIBERO's assets; also against LeRobot's own

All environments run in one process, from the same initial state with the same actions, so each round is the
same physics.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from support.measuring import (
    Case,
    Machine,
    Series,
    interleave,
    machine_line,
    ratios,
    spread,
    table,
    write_json,
)

if TYPE_CHECKING:
    import numpy as np

MINI = "multismolvla_mini"
BASELINE = "rgb"
PHYSICS = "physics only"
UPSTREAM = "lerobot LiberoEnv, rgb"
AIM = 1.6  # all streams at most this many times the time of RGB alone
HORIZON = 1000  # robosuite ends an episode here (LIBERO's default)


@dataclass
class SimulatorBenchmark:
    """Options of benchmarks/simulator.py."""

    suite: str = MINI
    task_id: int = 0
    # Streams to render, joined by "+"; "rgb" is added when missing, because everything is compared with it.
    variants: list[str] = field(
        default_factory=lambda: ["rgb", "rgb+depth", "rgb+depth+seg", "rgb+depth+seg+thermal"]
    )
    size: int = 0  # side of the pictures, pixels; 0 = 64 for the mini suite and 256 otherwise
    render_quality: str = "default"  # or fast; LeRobot's own env knows default only
    upstream: bool = True  # also LeRobot's own LiberoEnv; not for the mini suite, which it does not know
    libero_assets: str | None = None  # default: MULTISMOLVLA_LIBERO_ASSETS, then hf-libero's places
    steps: int = 20  # per round and variant
    rounds: int = 10
    warmup: int = 1
    seed: int = 0
    output: Path = Path("outputs/benchmarks/simulator.json")

    def __post_init__(self) -> None:
        if BASELINE not in self.variants:
            self.variants = [BASELINE, *self.variants]
        total = self.steps * (self.rounds + self.warmup)
        if self.steps < 1 or total >= HORIZON:
            raise ValueError(
                f"--steps={self.steps}, --rounds={self.rounds}, --warmup={self.warmup} are {total} steps of "
                f"one episode; expected 1 to {HORIZON - 1}."
            )


def run(cfg: SimulatorBenchmark) -> dict[str, Any]:
    """Build, measure, print and write. Returns what is written."""
    from lerobot_env_multismolvla.cameras import suite_cameras

    environments: dict[str, Any] = {}
    try:
        cases = _cases(cfg, environments)
        machine = Machine()
        series = interleave(cases, cfg.rounds, cfg.warmup, f"{cfg.suite}: {cfg.steps} steps")
        report = machine.report()
    finally:
        for env in environments.values():
            env.close()
    relative = ratios(series, BASELINE)
    cameras = len(suite_cameras(cfg.suite))
    share = _physics_share(series)
    content = {
        "benchmark": "simulator",
        "config": asdict(cfg),
        "picture_side": next(iter(environments.values())).observation_height,
        "cameras": cameras,
        "results": {name: own.to_dict() for name, own in series.items()},
        "ratios": relative,
        "physics_share_of_rgb": share,
        "aim": AIM,
        "machine": report,
    }
    side = content["picture_side"]
    print(f"\n{cfg.suite}, task {cfg.task_id}, {cameras} cameras {side} px, quality {cfg.render_quality}")
    print(table("one step", series, relative, BASELINE))
    print(f"physics is {share['median']:.0%} of the time with RGB alone")
    most = cfg.variants[-1]
    if most in relative:
        reached = relative[most]["wall"]["median"]
        verdict = "met" if reached <= AIM else "NOT met"
        print(f"{most}: {reached:.2f}x of RGB alone; the aim of at most {AIM}x is {verdict}")
    print(machine_line(report))
    write_json(cfg.output, content)
    return content


def _cases(cfg: SimulatorBenchmark, environments: dict[str, Any]) -> dict[str, Case]:
    """One environment per variant, reset to the same state and put into ``environments`` to be closed."""
    import numpy as np
    from tqdm import tqdm

    from lerobot_env_multismolvla import MultiSmolVLALiberoConfig

    generator = np.random.default_rng(cfg.seed)
    actions = generator.uniform(-0.3, 0.3, (cfg.steps * (cfg.rounds + cfg.warmup), 7)).astype(np.float32)
    cases = {}
    names = [PHYSICS, *cfg.variants] + ([UPSTREAM] if cfg.upstream and cfg.suite != MINI else [])
    for name in tqdm(names, desc="create environments", unit="env"):
        if name == UPSTREAM:
            env = _upstream(cfg)
        else:
            streams = [BASELINE] if name == PHYSICS else name.split("+")
            env = MultiSmolVLALiberoConfig(
                task=cfg.suite, streams=streams, observation_height=cfg.size, observation_width=cfg.size,
                render_quality=cfg.render_quality, libero_assets=cfg.libero_assets,
            ).env_maker(cfg.suite, cfg.task_id)()  # fmt: skip
            env.reset(seed=cfg.seed, options={"init_state_id": 0})
        environments[name] = env
        step = env.simulation.step if name == PHYSICS else env.step
        cases[name] = Case(_stepper(step, actions, cfg.steps), units=cfg.steps)
    return cases


def _stepper(step: Any, actions: np.ndarray, steps: int) -> Any:
    """A function that plays the next ``steps`` actions."""
    remaining = iter(actions)

    def play() -> None:
        for _ in range(steps):
            step(next(remaining))

    return play


def _upstream(cfg: SimulatorBenchmark) -> Any:
    """LeRobot's own environment of the same task, reset to the same initial state."""
    from lerobot.envs.libero import LiberoEnv

    from lerobot_env_multismolvla.libero.setup import asset_root
    from lerobot_env_multismolvla.multimodal_env import get_suite
    from multismolvla.system.libero_assets import find_libero_assets

    folder = find_libero_assets(cfg.libero_assets)
    if folder is None:  # cannot happen: our environment of this suite was made before
        raise FileNotFoundError("LIBERO's assets are gone.")
    side = cfg.size or 256
    with asset_root(folder):
        env = LiberoEnv(
            get_suite(cfg.suite), cfg.task_id, cfg.suite,
            obs_type="pixels_agent_pos", observation_width=side, observation_height=side,
        )  # fmt: skip
        env.reset(seed=cfg.seed)
    return env


def _physics_share(series: dict[str, Series]) -> dict[str, float]:
    """Physics time over RGB time, within rounds."""
    return spread([a / b for a, b in zip(series[PHYSICS].wall, series[BASELINE].wall, strict=True)])


def main() -> None:
    """Command line entry."""
    import draccus

    run(draccus.parse(SimulatorBenchmark))


if __name__ == "__main__":
    main()
