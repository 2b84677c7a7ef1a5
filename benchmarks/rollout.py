"""Success of a policy whose camera is killed in the middle of each episode, with and without the guard.

    python benchmarks/rollout.py --policy=outputs/demo/train/robust/checkpoints/last/pretrained_model

Each episode is a ``lerobot-rollout`` of its own on the simulated arm, in lockstep: a roll-out does not tell
the policy that an episode ended, and without the guard it ends with its camera. The same starts for all
three. Rows are kept as they come; the same command goes on where it stopped.
"""

from __future__ import annotations

import json
import statistics
import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from support.measuring import Machine, machine_line, write_json

from multismolvla.modalities import Modality, stream_name
from multismolvla.system.command import CommandError, entry_point, parse_options
from multismolvla_run.process import child_environment, die_with_parent, installed_program

CASES = ("no fault", "guarded", "unguarded")
PREFIX = "observation.images."
SIZE = {"width": 64, "height": 64, "fps": 20}


@dataclass
class RolloutBenchmark:
    """Options of benchmarks/rollout.py."""

    policy: Path = Path("outputs/demo/train/robust/checkpoints/last/pretrained_model")
    tasks: list[int] = field(default_factory=lambda: [0, 1, 2])  # of the mini suite
    starts: int = 7  # of each task's held-out ones, from the first
    camera: str = "image"  # that is killed: RGB, and depth where the policy has it, are all that its view has
    # step of each episode from which on it is gone; the suite's expert needs 80 steps in the mean
    lost_at: int = 40
    episode_length: int | None = None  # steps after which an episode has failed; default: the suite's
    device: str = "cpu"
    timeout_s: float = 1800.0  # of a roll-out
    output: Path = Path("outputs/benchmarks/rollout")  # rows, and log and diary of each roll-out

    def __post_init__(self) -> None:
        if self.starts < 1 or not self.tasks:
            raise ValueError(f"--starts={self.starts} --tasks={self.tasks}: expected at least one of each.")
        if self.lost_at < 1:
            raise ValueError(f"--lost_at={self.lost_at}: expected at least 1; a blind start is refused.")
        self.output.mkdir(parents=True, exist_ok=True)


@dataclass(frozen=True)
class Row:
    """How one episode ended.

    Attributes:
        steps: of the episode; ``None`` = the roll-out ended before it.
        exit_code: of ``lerobot-rollout``.
        losses: how often the policy's diary says that a stream was lost.
    """

    case: str
    task: int
    start: int
    success: bool
    steps: int | None
    exit_code: int
    losses: int


def run(cfg: RolloutBenchmark) -> list[Row]:
    """Roll out what is missing, print and write. Returns all rows.

    Raises:
        CommandError: the folder holds rows of other options, or a roll-out without a fault failed.
    """
    from tqdm import tqdm

    from lerobot_env_multismolvla.mini import TASKS

    if not (cfg.policy / "config.json").is_file():
        raise CommandError(f"--policy={cfg.policy} is no folder of a policy (no config.json).")
    _pictures(cfg)
    instructions = [name.replace("_", " ") for name in TASKS]
    file, settings = cfg.output / "rollout.json", json.loads(json.dumps(asdict(cfg), default=str))
    rows: list[Row] = []
    if file.is_file():
        known = json.loads(file.read_text())
        if known["config"] != settings:
            raise CommandError(f"{file} is of other options: {known['config']}. Choose another --output.")
        rows = [Row(**row) for row in known["rows"]]
    done = {(row.case, row.task, row.start) for row in rows}
    machine = Machine()
    wanted = [(c, t, s) for t in cfg.tasks for s in range(cfg.starts) for c in CASES]
    for case, task, start in tqdm([w for w in wanted if w not in done], desc="roll-outs", unit="episode"):
        rows.append(roll_out(cfg, case, task, start, instructions[task]))
        content = {"benchmark": "rollout", "config": settings, "rows": [asdict(row) for row in rows]}
        write_json(file, content | {"machine": machine.report()})
    print("\n".join(lines(cfg, rows)))
    print(machine_line(machine.report()))
    return rows


def roll_out(cfg: RolloutBenchmark, case: str, task: int, start: int, instruction: str) -> Row:
    """One episode through ``lerobot-rollout``.

    Raises:
        CommandError: it failed although no camera was killed.
    """
    name = f"{case.replace(' ', '_')}_{task}_{start}"
    report, diary, log = (cfg.output / f"{name}.{end}" for end in ("json", "jsonl", "log"))
    for old in (report, diary):
        old.unlink(missing_ok=True)
    words = [
        installed_program("lerobot-rollout"), f"--policy.path={cfg.policy}", f"--policy.device={cfg.device}",
        f"--policy.health_log={diary}", f"--device={cfg.device}", f"--task={instruction}",
        "--robot.type=multismolvla_sim_arm", "--robot.clock=lockstep", "--robot.id=benchmark",
        f"--robot.calibration_dir={cfg.output}", f"--robot.task_id={task}", f"--robot.init_state_id={start}",
        "--robot.episodes=1", f"--robot.report={report}", f"--robot.pictures={json.dumps(_pictures(cfg))}",
        f"--robot.cameras={json.dumps({cfg.camera: _camera(cfg, case)})}",
        f"--fps={SIZE['fps']}", "--duration=0", "--play_sounds=false", "--return_to_initial_position=false",
    ]  # fmt: skip
    if cfg.episode_length is not None:
        words.append(f"--robot.episode_length={cfg.episode_length}")
    with log.open("w") as said:
        code = subprocess.run(
            words, env=child_environment({"HF_HUB_OFFLINE": "1"}), stdout=said, stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL, timeout=cfg.timeout_s, preexec_fn=die_with_parent, check=False,
        ).returncode  # fmt: skip
    outcomes = json.loads(report.read_text()) if report.is_file() else []
    if case != "unguarded" and (code != 0 or not outcomes):
        raise CommandError(f"The roll-out '{case}', task {task}, start {start} ended with {code}; see {log}.")
    told = [json.loads(line) for line in diary.read_text().splitlines()] if diary.is_file() else []
    lost = sum(line["event"] == "lost" for line in told)
    success, steps = (outcomes[0]["success"], outcomes[0]["steps"]) if outcomes else (False, None)
    return Row(case, task, start, success, steps, code, lost)


def lines(cfg: RolloutBenchmark, rows: Sequence[Row]) -> Iterator[str]:
    """What to tell of the rows: for each case successes, interval, and how the roll-outs ended."""
    from multismolvla_eval.analysis.statistics import wilson

    yield f"{cfg.policy}: {cfg.camera} is gone from step {cfg.lost_at} on; 95 % Wilson intervals"
    for case in CASES:
        own = [row for row in rows if row.case == case]
        good = [row.steps for row in own if row.success and row.steps is not None]
        rate = wilson(len(good), len(own))
        codes = Counter(row.exit_code for row in own)
        ends = ", ".join(f"{n} with {code}" for code, n in sorted(codes.items()))
        half = f"; median length of a success {statistics.median(good):.0f} steps" if good else ""
        interval = f"({rate.low:.2f} to {rate.high:.2f})"
        yield f"  {case:10} {len(good)}/{len(own)} {interval}; exit codes: {ends}{half}"


def _pictures(cfg: RolloutBenchmark) -> list[str]:
    """The policy's pictures that the arm has: all but what the camera, of its view, does not deliver.

    Raises:
        CommandError: the policy does not know the camera.
    """
    features = json.loads((cfg.policy / "config.json").read_text())["input_features"]
    names = [k.removeprefix(PREFIX) for k, f in features.items() if f["type"] == "VISUAL"]
    if cfg.camera not in names:
        raise CommandError(f"--camera={cfg.camera} is none of the policy's pictures {names}.")
    not_delivered = {stream_name(cfg.camera, m) for m in (Modality.SEG, Modality.THERMAL)}
    return [name for name in names if name not in not_delivered]


def _camera(cfg: RolloutBenchmark, case: str) -> Mapping[str, object]:
    """The camera's options."""
    output = "rgbd" if stream_name(cfg.camera, Modality.DEPTH) in _pictures(cfg) else "rgb"
    gone = [] if case == "no fault" else [f"lost@{cfg.lost_at}-"]
    camera = {"type": "multismolvla_sim_camera", "picture": cfg.camera, "output": output, "faults": gone}
    camera |= SIZE
    return camera if case == "unguarded" else {"type": "multismolvla_guarded", "inner": camera}


@entry_point("benchmark")
def main() -> int:
    """Entry point."""
    run(parse_options(RolloutBenchmark))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
