"""What judging the pictures costs at each look of the policy: `python benchmarks/health.py`.

Against LeRobot's own `prepare_observation_for_inference`, which turns a robot's pictures into tensors.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from support.measuring import Case, Machine, interleave, machine_line, ratios, table, write_json

from multismolvla.system.command import entry_point, parse_options

BASELINE = "prepare_observation_for_inference"
MARKS, VERDICT = "marks of the pre-processor", "verdict of the policy"
AIM = 0.1  # both together, of LeRobot's time


@dataclass
class HealthBenchmark:
    """Options of benchmarks/health.py."""

    height: int = 480  # of a picture, pixels
    width: int = 640
    cameras: int = 2  # with RGB and depth each
    rounds: int = 30
    warmup: int = 3
    threads: int = 1  # of PyTorch
    output: Path = Path("outputs/benchmarks/health.json")

    def __post_init__(self) -> None:
        if min(self.height, self.width) < 16 or min(self.cameras, self.rounds) < 1:
            raise ValueError("Expected pictures of at least 16 pixels, one camera and one round.")


def run(cfg: HealthBenchmark) -> dict[str, Any]:
    """Build, measure, print and write. Returns what is written."""
    import numpy as np
    import torch
    from lerobot.policies.utils import prepare_observation_for_inference

    from lerobot_policy_multismolvla.processor_multismolvla import HealthStep
    from multismolvla.health import StreamStatistics, health_key, judge
    from multismolvla.modalities import default_view_map, valid_key

    torch.set_num_threads(cfg.threads)
    rng = np.random.default_rng(0)
    views = default_view_map(tuple(f"camera{n}" for n in range(cfg.cameras)), ("rgb", "depth"))
    raw: dict[str, Any] = {"observation.state": rng.normal(size=6).astype(np.float32)}
    canonical: dict[str, Any] = {}
    for streams in views.values():
        rgb = rng.integers(0, 256, (cfg.height, cfg.width, 3), dtype=np.uint8)
        depth = rng.uniform(0.3, 2, (cfg.height, cfg.width, 1)).astype(np.float32)
        raw |= {streams["rgb"]: rgb, streams["depth"]: depth}
        canonical[streams["rgb"]] = torch.from_numpy(rgb).permute(2, 0, 1)[None].float() / 255
        canonical[streams["depth"]] = torch.from_numpy(depth).permute(2, 0, 1)[None]
        canonical[valid_key(streams["depth"])] = canonical[streams["depth"]] > 0
    step = HealthStep(views=views)
    healthy = StreamStatistics(torch.zeros(7), torch.ones(7), torch.ones(7), 3.0, 1e-3, False)
    step.set_statistics({f"{v}.{m}": healthy for v, streams in views.items() for m in streams}, {})
    marked = step.observation(canonical)
    keys = [key for streams in views.values() for key in streams.values()]
    marks = torch.stack([marked[health_key(key)] for key in keys], 1)
    state = torch.from_numpy(raw["observation.state"])[None]
    memory = judge(marks, state, None).memory
    device = torch.device("cpu")
    cases = {
        BASELINE: Case(lambda: prepare_observation_for_inference(dict(raw), device)),
        MARKS: Case(lambda: step.observation(canonical)),
        VERDICT: Case(lambda: judge(marks, state, memory)),
    }
    machine = Machine()
    series = interleave(cases, cfg.rounds, cfg.warmup, "one look")
    relative = ratios(series, BASELINE)
    share = sum(relative[name]["wall"]["median"] for name in (MARKS, VERDICT))
    content: dict[str, Any] = {
        "benchmark": "health",
        "config": asdict(cfg),
        "results": {name: own.to_dict() for name, own in series.items()},
        "ratios": relative,
        "share": share,
        "aim": AIM,
        "machine": machine.report(),
    }
    print(
        table(f"{cfg.cameras} cameras, {cfg.width}x{cfg.height}, RGB and depth", series, relative, BASELINE)
    )
    verdict = "met" if share <= AIM else "NOT met"
    print(
        f"marks and verdict: {share:.0%} of LeRobot's preparation; the aim of at most {AIM:.0%} is {verdict}"
    )
    print(machine_line(content["machine"]))
    write_json(cfg.output, content)
    return content


@entry_point("benchmark")
def main() -> int:
    """Entry point."""
    run(parse_options(HealthBenchmark))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
