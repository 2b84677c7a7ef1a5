"""Every command of docs/deploy.md, as it stands there, on emulated devices with tiny networks."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import draccus
import pytest
from lerobot.configs.policies import PreTrainedConfig
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.robots.so_follower import SOFollowerRobotConfig
from lerobot.scripts.lerobot_teleoperate import TeleoperateConfig
from lerobot.utils.import_utils import register_third_party_plugins
from processes import allow_any_action, as_options, environment, free_port, wait_until
from tiny_annotated import write_networks
from tiny_official import sources, write_official

from multismolvla_run.process import die_with_parent

REPO = Path(__file__).resolve().parents[3]
PAGE = (REPO / "docs" / "deploy.md").read_text()
PORT = "5555"  # of the emulated wrist camera, in the page
FPS, EPISODES = 10, 3
#: The wrist camera's pictures per second in the page, and here, where many processes share the machine.
RATE, SLOW = "fps: 20", "fps: 5"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


ARM, EMULATE, EMULATED, *COMMANDS = blocks("bash")


def words(block: str, name: str) -> list[str]:
    """The words of an array that a block of the page sets."""
    script = f"{block}\nprintf '%s\\0' \"${{{name}[@]}}\""
    done = subprocess.run(["bash", "-euc", script], capture_output=True, text=True, check=True)
    return done.stdout.split("\0")[:-1]


@pytest.mark.parametrize("block", [ARM, EMULATED], ids=["arm", "emulated"])
def test_lerobot_understands_the_devices(block):
    register_third_party_plugins()
    config = draccus.parse(TeleoperateConfig, args=[*words(block, "ROBOT"), *words(block, "TELEOP")])
    assert isinstance(config.robot, SOFollowerRobotConfig)
    assert {name: camera.type for name, camera in config.robot.cameras.items()} == dict.fromkeys(
        ("front", "wrist", "hot"), "multismolvla_guarded"
    )


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("networks")
    write_networks(root)
    return write_official(root)


def tiny(hub: Path, networks: Path) -> dict[str, list[str]]:
    """Program of the page -> what makes of its command one for minutes and tiny networks."""
    estimators = {modality: str(networks / modality) for modality in ("depth", "seg", "thermal")}
    tokenizers = {"tokenizer_sources": sources(networks), "imagebind": networks / "imagebind"}
    short = {"num_episodes": EPISODES, "episode_time_s": 3, "reset_time_s": 0.1, "fps": FPS}
    record = [*as_options(short, "dataset."), "--play_sounds=false"]
    record += ["--robot.discover_packages_path=patient_motors"]
    sizes = {
        "load_vlm_weights": False, "num_vlm_layers": 2, "chunk_size": 8, "n_action_steps": 4, "num_steps": 1,
        "resize_imgs_with_padding": [64, 64], "vlm_model_name": hub / "vlm",
    }  # fmt: skip
    tower = {"encoder": networks / "fourm21", "connector_hidden": 64, "connector_grid": 8} | tokenizers
    tower |= {"estimator_sources": estimators}
    training = ["--steps=2", "--save_freq=2", "--batch_size=2", "--num_workers=0", "--policy.device=cpu"]
    training += [
        f"base:--policy.base_checkpoint={hub / 'base'}",
        *(f"base:{word}" for word in as_options(sizes, "policy.")),
        *(f"connector:{word}" for word in as_options(sizes | tower, "policy.")),
        *(f"sensor_use_check:{word}" for word in ("--strict=false", "--frames=8", "--modality_frames=4")),
    ]
    acting = [f"--policy.estimator_sources={json.dumps(estimators)}", "--policy.device=cpu", "--device=cpu"]
    return {
        "lerobot-record": record,
        "multismolvla-annotate": [
            *as_options({f"{m}_model": folder for m, folder in estimators.items()} | tokenizers),
            "--thermal_steps=1", "--thermal_size=32", "--device=cpu", "--batch_size=4",
        ],
        "python": ["--", *training],
        # no video: LeRobot cannot join one of one frame, the whole episode where the first look is slow
        "lerobot-rollout": [*record, "--dataset.video=false", f"--fps={FPS}", *acting],
    }  # fmt: skip


class Bench:
    """A folder in which the page's commands run.

    Args:
        folder: for everything that they write.
        more: program -> options that are added to the page's.
    """

    def __init__(self, folder: Path, more: dict[str, list[str]]) -> None:
        self.folder = folder
        self.port = str(free_port())
        shutil.copy(REPO / "train.py", folder)
        shutil.copytree(REPO / "configs", folder / "configs")
        (folder / "docs").symlink_to(REPO / "docs")
        self._more = {}
        for number, (program, options) in enumerate(more.items()):
            file = folder / f"options{number}"
            file.write_text("\n".join(options))
            self._more[program] = file

    def script(self, block: str) -> list[str]:
        """A block of the page as a process: the emulated devices, and the programs with options added."""
        functions = [
            f'{name}() {{ mapfile -t more < {file}; command {name} "$@" "${{more[@]}}"; }}'
            for name, file in self._more.items()
        ]
        if not block.startswith("python train.py"):
            functions = [f for f in functions if not f.startswith("python")]
        devices = EMULATED.replace(RATE, SLOW)
        text = "\n".join([*functions, devices, block]).replace(PORT, self.port)
        return ["bash", "-euc", text]

    def start(self, block: str, log: Path) -> subprocess.Popen[bytes]:
        programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        with log.open("w") as out:
            return subprocess.Popen(
                self.script(block), cwd=self.folder, env=environment() | {"PATH": programs}, stdout=out,
                stderr=subprocess.STDOUT, preexec_fn=die_with_parent, start_new_session=True,
            )  # fmt: skip

    def run(self, block: str) -> str:
        """Run a block to its end; what was said."""
        log = self.folder / "said.log"
        process = self.start(block, log)
        assert process.wait(timeout=1500) == 0, f"{block}\n{log.read_text()[-4000:]}"
        return log.read_text()


@contextmanager
def running(bench: Bench, block: str) -> Iterator[str]:
    """The emulated arm; what it said when it was ready."""
    log = bench.folder / "emulate.log"
    process = bench.start(
        block.replace("multismolvla-emulate so101", f"multismolvla-emulate so101 --port={bench.port}"), log
    )
    try:
        wait_until(lambda: "lerobot-rollout" in log.read_text(), process, log)
        yield log.read_text()
    finally:
        process.terminate()
        process.wait(timeout=200)


@pytest.mark.sim
@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_page_from_the_first_recording_to_the_last_picture(hub, networks, tmp_path):
    pytest.importorskip("scservo_sdk", reason="the extra `deploy` is not installed")
    bench = Bench(tmp_path, tiny(hub, networks))
    (preset,) = blocks("yaml")
    (tmp_path / "configs" / "mine.yaml").write_text(preset)
    outputs = tmp_path / "outputs" / "so101"
    trained = outputs / "train" / "robust" / "checkpoints" / "last" / "pretrained_model"
    with running(bench, EMULATE) as greeting:
        (wrist,) = re.findall(r"wrist: process (\d+)", greeting)
        for block in COMMANDS:
            if not block.startswith("lerobot-rollout"):
                bench.run(block)
                continue
            allow_any_action(trained)
            log = tmp_path / "rollout.log"
            rollout = bench.start(block, log)
            wait_until(lambda log=log: "Sensors at the start" in log.read_text(), rollout, log)
            os.kill(int(wrist), signal.SIGKILL)  # the plug is pulled
            assert rollout.wait(timeout=1500) == 0, log.read_text()[-4000:]

    config = PreTrainedConfig.from_pretrained(trained)
    assert config.thermal_range_c == [10, 60]
    said = config.provenance_map.is_derived
    assert [s for s in ("front.depth", "wrist.depth", "hot.thermal") if said(*s.split("."))] == [
        "wrist.depth"
    ]
    fitted = json.loads((trained / "health.json").read_text())["streams"]
    assert {"front.rgb", "front.depth", "wrist.rgb", "hot.thermal"} <= set(fitted)
    assert LeRobotDataset("local/rolled_out", root=outputs / "rolled_out").num_episodes == EPISODES
    diary = [json.loads(line) for line in (outputs / "rolled_out" / "health.jsonl").read_text().splitlines()]
    starts = [line["streams"] for line in diary if line["event"] == "start"]
    assert len(starts) == EPISODES
    # of one episode's few looks the ranges are narrow, so before it was unplugged it may have been "unusual"
    assert starts[0]["wrist.rgb"] != starts[-1]["wrist.rgb"] == "zero"
    assert starts[-1]["front.rgb"] == starts[-1]["front.depth"] == "there"
    cameras = (outputs / "cameras.jsonl").read_text()
    assert '"camera": "GuardedCamera(ZMQCamera(wrist@' in cameras
    assert 10_000 < (outputs / "rolled_out.png").stat().st_size < 300_000
