"""What is added to LeRobot where a policy acts, in LeRobot's own time: `python benchmarks/deploy.py`.

- *health*: marks and verdict on the pictures of a look, against ``prepare_observation_for_inference``.
- *guard*: a guarded camera's read, against the same camera's own, LeRobot's zmq camera.
- *align*: depth in a camera's units made millimetres seen from the colour camera, against ``quantize_depth``,
  which LeRobot does to the same picture when it records it.
- *rtc*: a plan that continues the one before, against one that does not.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from support.measuring import Case, Machine, interleave, machine_line, ratios, table, write_json
from support.policy_models import PRESETS, Options, PolicyFactory, sizes

from multismolvla.system.command import entry_point, parse_options

READS = 1000  # per round and case


class Quantity(NamedTuple):
    """What is compared.

    Attributes:
        title: of its table; ``{size}`` = of the pictures.
        unit: what is done once.
        baseline: LeRobot's own.
        added: cases whose time counts, all together.
        aim: at most so many times the baseline.
    """

    title: str
    unit: str
    baseline: str
    added: tuple[str, ...]
    aim: float


QUANTITIES = {
    "health": Quantity(
        "two cameras of {size} with RGB and depth", "one look", "prepare_observation_for_inference",
        ("marks of the pre-processor", "verdict of the policy"), 0.1,
    ),
    "guard": Quantity(
        "colour of {size}", "one read", "read_latest of LeRobot's zmq camera", ("the same, guarded",), 1.2
    ),
    "align": Quantity(
        "depth of {size}", "one picture", "quantize_depth", ("millimetres, aligned to colour",), 1.0
    ),
    "rtc": Quantity("policy", "one plan", "plan", ("plan that continues another (RTC)",), 1.5),
}  # fmt: skip


@dataclass
class DeployBenchmark:
    """Options of benchmarks/deploy.py."""

    quantities: list[str] = field(default_factory=lambda: list(QUANTITIES))
    height: int = 480  # of a picture, pixels
    width: int = 640
    preset: str = "tiny"  # sizes of the policy that plans: tiny, real, or smallest (for tests)
    rounds: int = 30
    warmup: int = 3
    threads: int = 1  # of PyTorch
    output: Path = Path("outputs/benchmarks/deploy.json")

    def __post_init__(self) -> None:
        if min(self.height, self.width) < 16 or self.rounds < 1:
            raise ValueError("Expected pictures of at least 16 pixels, and at least one round.")
        if not self.quantities or {*self.quantities} - {*QUANTITIES}:
            raise ValueError(f"--quantities={self.quantities}: expected of {list(QUANTITIES)}.")
        if self.preset not in PRESETS:
            raise ValueError(f"--preset={self.preset!r}: expected one of {list(PRESETS)}.")


def run(cfg: DeployBenchmark) -> dict[str, Any]:
    """Build, measure, print and write. Returns what is written."""
    import torch

    torch.set_num_threads(cfg.threads)
    machine = Machine()
    content: dict[str, Any] = {"benchmark": "deploy", "config": asdict(cfg), "quantities": {}}
    for name in cfg.quantities:
        about = QUANTITIES[name]
        with _CASES[name](cfg) as cases:
            series = interleave(
                dict(zip((about.baseline, *about.added), cases, strict=True)), cfg.rounds, cfg.warmup, name
            )
        relative = ratios(series, about.baseline)
        reached = sum(relative[case]["wall"]["median"] for case in about.added)
        content["quantities"][name] = {
            "results": {case: own.to_dict() for case, own in series.items()},
            "ratios": relative,
            "reached": reached,
            "aim": about.aim,
        }
        title = about.title.format(size=f"{cfg.width}x{cfg.height}")
        print(table(f"{name}: {title}; {about.unit}", series, relative, about.baseline))
        verdict = "met" if reached <= about.aim else "NOT met"
        print(f"{name}: {reached:.2f} times LeRobot's own; the aim of at most {about.aim:g} is {verdict}\n")
    content["machine"] = machine.report()
    print(machine_line(content["machine"]))
    write_json(cfg.output, content)
    return content


@contextmanager
def _health(cfg: DeployBenchmark) -> Iterator[list[Case]]:
    import numpy as np
    import torch
    from lerobot.policies.utils import prepare_observation_for_inference

    from lerobot_policy_multismolvla.processor_multismolvla import HealthStep
    from multismolvla.health import StreamStatistics, health_key, judge
    from multismolvla.modalities import default_view_map, valid_key

    rng = np.random.default_rng(0)
    views = default_view_map(modalities=("rgb", "depth"))
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
    healthy = StreamStatistics(torch.zeros(7), torch.ones(7), torch.ones(7), 3.0, 1e-3, False, 0.5)
    step.set_statistics({f"{v}.{m}": healthy for v, streams in views.items() for m in streams}, {})
    marked = step.observation(canonical)
    keys = [key for streams in views.values() for key in streams.values()]
    marks = torch.stack([marked[health_key(key)] for key in keys], 1)
    state = torch.from_numpy(raw["observation.state"])[None]
    memory = judge(marks, state, None).memory
    device = torch.device("cpu")
    yield [
        Case(lambda: prepare_observation_for_inference(dict(raw), device)),
        Case(lambda: step.observation(canonical)),
        Case(lambda: judge(marks, state, memory)),
    ]


@contextmanager
def _guard(cfg: DeployBenchmark) -> Iterator[list[Case]]:
    from lerobot.cameras.utils import make_cameras_from_configs
    from lerobot.cameras.zmq import ZMQCameraConfig
    from processes import free_port, publish_pictures

    from lerobot_robot_multismolvla import GuardedCameraConfig

    port = free_port()
    place = {"server_address": "127.0.0.1", "port": port, "camera_name": "front", "timeout_ms": 1000}
    size = {"width": cfg.width, "height": cfg.height, "fps": 30}
    # not the guard's default of 100 ms: on a busy machine the picture would be lost, which is another case
    guarded = GuardedCameraConfig(inner=ZMQCameraConfig(**place, **size), max_age_ms=60_000)
    cameras = make_cameras_from_configs({"raw": ZMQCameraConfig(**place, **size), "guarded": guarded})
    publisher = publish_pictures(port, cfg.width, cfg.height)
    try:
        for camera in cameras.values():
            camera.connect()
        yield [
            Case(lambda: _repeat(lambda: cameras["raw"].read_latest(60_000)), units=READS),
            Case(lambda: _repeat(cameras["guarded"].read_latest), units=READS),
        ]
        assert cameras["guarded"].read_latest().any(), "the guarded camera was lost"
        for camera in cameras.values():
            camera.disconnect()
    finally:
        publisher.kill()
        publisher.wait()


def _repeat(read: Callable[[], object]) -> None:
    for _ in range(READS):
        read()


@contextmanager
def _align(cfg: DeployBenchmark) -> Iterator[list[Case]]:
    import numpy as np
    from lerobot.datasets.depth_utils import quantize_depth

    from lerobot_robot_multismolvla.calibration import Calibration, Pinhole
    from lerobot_robot_multismolvla.depth import Aligner, DepthConverter

    lens = Pinhole(cfg.width, cfg.height, cfg.width, cfg.width, cfg.width / 2, cfg.height / 2)
    # as in a D405: tenths of a millimetre, sensors 2 cm apart; a scene between 0.3 m and 1.2 m with holes
    turn, shift = np.eye(3).ravel().tolist(), [0.02, 0.0, 0.0]
    rows, columns = np.mgrid[: cfg.height, : cfg.width]
    units = 3000 + 9000 * (columns + rows) / (cfg.height + cfg.width)
    holes = np.random.default_rng(0).random(units.shape) < 0.05
    raw = np.where(holes, 0, units)[..., None].astype(np.uint16)
    convert = DepthConverter(0.1, Aligner(Calibration(lens, lens, turn, shift)))
    millimetres = convert(raw)
    yield [Case(lambda: quantize_depth(millimetres)), Case(lambda: convert(raw))]


@contextmanager
def _rtc(cfg: DeployBenchmark) -> Iterator[list[Case]]:
    import torch
    from lerobot.policies.rtc.configuration_rtc import RTCConfig

    preset = sizes(cfg.preset, "robust")
    options = Options(list(preset.domains), "robust", "expert", "cpu", 0)
    with tempfile.TemporaryDirectory(prefix="benchmark-") as scratch:
        factory = PolicyFactory(preset, options, Path(scratch))
        policy = factory.build("fourm").eval()
    rows = policy.config.chunk_size
    batch = {key: value for key, value in factory.batch(1, rows).items() if key != "action"}
    policy.config.rtc_config = RTCConfig(execution_horizon=max(1, rows // 2))
    policy.init_rtc_processor()

    def switch(on: bool) -> Callable[[], None]:
        def prepare() -> None:
            policy.config.rtc_config.enabled = on

        return prepare

    left = torch.randn(max(1, rows // 2), 7, generator=torch.Generator().manual_seed(0))
    continued = {"inference_delay": max(1, rows // 8), "prev_chunk_left_over": left}
    yield [
        Case(lambda: policy.predict_action_chunk(dict(batch)), prepare=switch(False)),
        Case(lambda: policy.predict_action_chunk(dict(batch), **continued), prepare=switch(True)),
    ]


_CASES = {"health": _health, "guard": _guard, "align": _align, "rtc": _rtc}


@entry_point("benchmark")
def main() -> int:
    """Entry point."""
    run(parse_options(DeployBenchmark))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
