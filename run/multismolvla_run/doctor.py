"""``multismolvla-doctor``: can this machine do the job, and if not, which command mends it?

It looks and measures; it installs nothing, and fetches only what ``--fetch-assets`` asks for. Each check stands alone and imports nothing heavy into this process, so that
the doctor can still speak when torch, LeRobot or the graphics libraries are the patient.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from multismolvla.pretrained import SOURCES
from multismolvla.system.command import CommandError, entry_point
from multismolvla.system.libero_assets import find_libero_assets, identify, missing_files, own_folder
from multismolvla.system.versions import installed
from multismolvla_run.hub import cache_folder, is_cached
from multismolvla_run.threads import (
    ThreadTrial,
    available_cores,
    best_thread_env,
    describe,
    fastest,
    measure_all,
)

__all__ = ["APT_PACKAGES", "Check", "best_thread_env", "main", "render_works", "run_checks"]

#: Debian packages of the software renderer and of OpenCV; `scripts/system-packages.sh` installs the same ones.
APT_PACKAGES = ("libegl1", "libegl-mesa0", "libgl1-mesa-dri", "libgl1", "libglib2.0-0")
_OWN = "lerobot_policy_multismolvla"
_MIN_DISK_GB = 3.0
_MIN_MEMORY_GB = 4.0

_RENDER = """
import mujoco, time
model = mujoco.MjModel.from_xml_string(
    "<mujoco><worldbody><light pos='0 0 3'/><geom type='sphere' size='.2' rgba='1 0 0 1'/></worldbody></mujoco>")
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
with mujoco.Renderer(model, 64, 64) as renderer:
    renderer.update_scene(data)
    assert renderer.render().max() > 0, "the picture is black"
    start = time.perf_counter()
    for _ in range(10):
        renderer.update_scene(data)
        renderer.render()
    print((time.perf_counter() - start) / 10)
"""


@dataclass(frozen=True)
class Check:
    """Result of one examination.

    Attributes:
        name: what was looked at.
        status: ``ok``, ``note`` (works, but worth knowing) or ``fail`` (something required is missing).
        found: what was found, in words.
        remedy: the command or step that mends it, empty when there is nothing to do.
        env: environment variables that this finding recommends for the job.
    """

    name: str
    status: str
    found: str
    remedy: str = ""
    env: dict[str, str] = field(default_factory=dict)


def _as_root(command: str) -> str:
    return command if hasattr(os, "geteuid") and os.geteuid() == 0 else f"sudo {command}"


def _apt_command(packages: tuple[str, ...] = APT_PACKAGES) -> str:
    return _as_root("apt-get update && ") + _as_root(
        f"apt-get install -y --no-install-recommends {' '.join(packages)}"
    )


def check_python() -> Check:
    """Python is at least 3.12, as LeRobot 0.6 demands."""
    version = platform.python_version()
    if tuple(int(part) for part in platform.python_version_tuple()[:2]) >= (3, 12):
        return Check("Python", "ok", f"{version} ({sys.prefix})")
    return Check("Python", "fail", f"{version}, need >= 3.12", "make venv")


def check_packages() -> Check:
    """The packages that the job imports are installed; LeRobot is in the supported range."""
    versions = {name: version for name, version in installed().items() if name != _OWN}
    missing = [name for name, version in versions.items() if version is None]
    if missing:
        return Check("Packages", "fail", f"not installed: {', '.join(missing)}", "make venv")
    lerobot = tuple(int(part) for part in str(versions["lerobot"]).split(".")[:3] if part.isdigit())
    found = ", ".join(f"{name} {version}" for name, version in versions.items())
    if not (0, 6, 1) <= lerobot < (0, 7):
        return Check(
            "Packages", "fail", f"lerobot {versions['lerobot']}, need >= 0.6.1 and < 0.7", "make venv"
        )
    return Check("Packages", "ok", found)


def check_plugin() -> Check:
    """The distribution is installed under the name by which LeRobot finds plugins."""
    try:
        name = importlib.metadata.distribution(_OWN).metadata["Name"]
    except importlib.metadata.PackageNotFoundError:
        return Check(
            "LeRobot plugin", "fail", "lerobot_policy_multismolvla is not installed", "pip install -e ."
        )
    if name != "lerobot_policy_multismolvla":
        remedy = "install with setuptools >= 77, which keeps underscores in the metadata"
        return Check(
            "LeRobot plugin", "fail", f"the metadata calls it {name!r}, LeRobot will not find it", remedy
        )
    return Check("LeRobot plugin", "ok", f"{name} {importlib.metadata.version(name)}")


def render_works(backend: str, timeout_s: float = 60.0) -> tuple[float | None, str]:
    """Render a picture with MuJoCo in a process of its own.

    Args:
        backend: value of ``MUJOCO_GL``: ``egl``, ``osmesa`` or ``glfw``.
        timeout_s: give up after this many seconds.

    Returns:
        ``(seconds per 64x64 picture, "")`` or ``(None, last line of the error)``.
    """
    env = {**os.environ, "MUJOCO_GL": backend, "PYOPENGL_PLATFORM": backend}
    try:
        done = subprocess.run(
            [sys.executable, "-c", _RENDER],
            env=env,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return None, f"no picture within {timeout_s:.0f} s"
    if done.returncode == 0:
        return float(done.stdout.strip().splitlines()[-1]), ""
    lines = [line for line in done.stderr.strip().splitlines() if line.strip()]
    return None, lines[-1] if lines else f"exit code {done.returncode}"


def check_rendering() -> Check:
    """A picture can be rendered without a display, by EGL or else by OSMesa."""
    errors = []
    for backend in ("egl", "osmesa"):
        seconds, error = render_works(backend)
        if seconds is not None:
            found = f"{backend}, {1000 * seconds:.1f} ms for a 64x64 test picture"
            return Check("Rendering", "ok", found, env={"MUJOCO_GL": backend})
        errors.append(f"{backend}: {error}")
    return Check("Rendering", "fail", "; ".join(errors), _apt_command())


def check_opencv() -> Check:
    """OpenCV loads (its wheel links to libGL and glib of the system)."""
    done = subprocess.run(
        [sys.executable, "-c", "import cv2; print(cv2.__version__)"],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 0:
        return Check("OpenCV", "ok", done.stdout.strip())
    lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
    return Check("OpenCV", "fail", lines[-1], _apt_command(("libgl1", "libglib2.0-0")))


def check_disk(folder: Path) -> Check:
    """There is room for the demonstrations, checkpoints and clips in ``folder``."""
    existing = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    free = shutil.disk_usage(existing).free / 1e9
    found = f"{free:.0f} GB free in {existing}"
    if free < _MIN_DISK_GB:
        return Check(
            "Disk", "fail", found, f"free {_MIN_DISK_GB:.0f} GB, or choose another folder with --output"
        )
    return Check("Disk", "ok", found)


def check_machine() -> Check:
    """Cores that may be used, and memory."""
    cores = available_cores()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    found = f"{cores} core{'s' if cores > 1 else ''}, {memory:.0f} GB memory"
    if memory < _MIN_MEMORY_GB:
        return Check("Machine", "note", found, "with less than 4 GB run record and eval with --workers 1")
    return Check("Machine", "ok", found)


def check_gpu() -> Check:
    """Whether there is a CUDA device; none is needed for the mini preset."""
    code = "import torch; print(torch.cuda.get_device_name(0) if torch.cuda.is_available() else '')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return Check("GPU", "fail", f"torch does not load: {lines[-1]}", "make venv")
    name = done.stdout.strip()
    return Check("GPU", "ok" if name else "note", name or "none; the mini preset is made for CPUs")


def check_hub() -> Check:
    """Whether the model hub can be reached, and where its cache lies. The mini preset needs neither."""
    cache = cache_folder()
    held = len([*cache.glob("models--*"), *cache.glob("datasets--*")]) if cache.is_dir() else 0
    cached = f"{held} repositories cached in {cache}" if held else "nothing cached"
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        return Check("Model hub", "note", f"switched off by HF_HUB_OFFLINE; {cached}")
    try:
        with socket.create_connection(("huggingface.co", 443), timeout=3):
            return Check("Model hub", "ok", f"reachable; {cached}")
    except OSError as error:
        remedy = "only for official weights: connect, or copy a hub cache and set HF_HOME"
        return Check("Model hub", "note", f"not reachable ({error}); {cached}", remedy)


def check_weights() -> Check:
    """Which of the published weights are in the hub's cache. The mini preset needs none of them."""
    cached = [repo for repo in SOURCES if is_cached(repo)]
    found = f"{len(cached)} of {len(SOURCES)} cached{': ' if cached else ''}{', '.join(cached)}"
    if len(cached) == len(SOURCES):
        return Check("Official weights", "ok", found)
    remedy = "only for official presets: `python train.py PRESET --dry-run` says which ones it needs; list: --weights"
    return Check("Official weights", "note", found, remedy)


def weights_table() -> str:
    """All published weights that the package can read: cached or not, size, licence."""
    width = max(len(repo) for repo in SOURCES)
    rows = [
        f"{'yes' if is_cached(s.repo) else 'no':<6}  {s.repo:<{width}}  {s.size:>18}  {s.licence}"
        for s in SOURCES.values()
    ]
    return "\n".join([f"{'cached':<6}  {'repository':<{width}}  {'size':>18}  licence", *rows])


def check_libero_assets() -> Check:
    """LIBERO's own meshes and scenes. The mini suite brings its own and needs none of them."""
    remedy = (
        "only for the LIBERO suites: multismolvla-doctor --fetch-assets, or set MULTISMOLVLA_LIBERO_ASSETS"
    )
    try:
        folder = find_libero_assets()
    except FileNotFoundError as error:
        return Check("LIBERO assets", "note", str(error), remedy)
    if folder is None:
        return Check("LIBERO assets", "note", "absent", remedy)
    missing = missing_files(folder)
    if missing:
        found = f"{folder} lacks {len(missing)} files of the four suites, e.g. {missing[0]}"
        return Check("LIBERO assets", "note", found, remedy)
    identity = identify(folder)
    whose = {
        True: "some are visual stand-ins",
        False: "LIBERO's own as far as known",
        None: "some are unknown",
    }
    return Check("LIBERO assets", "ok", f"{folder} (assets {identity.hash}, {whose[identity.standins]})")


def check_threads(cache_path: Path | None) -> Check:
    """The thread setting that trains fastest here, measured (or read from ``cache_path``)."""
    if cache_path is not None:
        env = best_thread_env(cache_path)
        trials = [
            ThreadTrial(t["env"], t["seconds_per_step"]) for t in json.loads(cache_path.read_text())["trials"]
        ]
    else:
        trials = measure_all()
        env = fastest(trials)
    if all(t.seconds is None for t in trials):
        return Check("Threads", "fail", "a small training step failed under every setting", "make venv", env)
    timings = "; ".join(
        f"{describe(t.env)}: {1000 * t.seconds:.0f} ms/step" for t in trials if t.seconds is not None
    )
    return Check("Threads", "ok", f"best: {describe(env)}  ({timings})", env=env)


def run_checks(output: Path, thread_cache: Path | None = None, skip_threads: bool = False) -> list[Check]:
    """Run every check.

    Args:
        output: folder where the job will write; its disk is looked at. Need not exist.
        thread_cache: where the thread measurement is remembered.
        skip_threads: leave that measurement (about ten seconds) out.

    Returns:
        The checks in the order of the table.
    """
    checks: list[Callable[[], Check]] = [
        check_python, check_packages, check_plugin, check_rendering, check_opencv,
        lambda: check_disk(output), check_machine, check_gpu, check_hub, check_weights, check_libero_assets,
    ]  # fmt: skip
    if not skip_threads:
        checks.append(lambda: check_threads(thread_cache))
    return [check() for check in checks]


def format_table(checks: list[Check]) -> str:
    """The checks as a text table, remedies on lines of their own."""
    width = max(len(c.name) for c in checks)
    lines = []
    for check in checks:
        lines.append(f"{check.status:>4}  {check.name:<{width}}  {check.found}")
        if check.remedy:
            lines.append(f"{'':>4}  {'':<{width}}  -> {check.remedy}")
    return "\n".join(lines)


@entry_point(
    "error",
    errors=(CommandError,),
    interrupted="\nInterrupted. What was fetched is kept; the same command continues.",
)
def _fetch(folder: Path) -> int:
    from multismolvla_run.fetch_assets import fetch_assets

    sys.stdout.write("\n".join(fetch_assets(folder)) + "\n")
    return 0


def main(argv: list[str] | None = None) -> int:
    """Command line. Returns 1 only when something required is missing."""
    parser = argparse.ArgumentParser(
        prog="multismolvla-doctor",
        description="Can this machine do the job, and if not, which command mends it? Looks, measures, installs nothing.",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--report", type=Path, help="also write the JSON into this file")
    parser.add_argument("--output", type=Path, default=Path("outputs"), help="folder the job will write to")
    parser.add_argument("--thread-cache", type=Path, help="file that remembers the thread measurement")
    parser.add_argument("--skip-threads", action="store_true", help="leave out the thread measurement (10 s)")
    parser.add_argument(
        "--fetch-assets",
        nargs="?",
        type=Path,
        const=own_folder(),
        metavar="FOLDER",
        help="download LIBERO's meshes and scenes into FOLDER (default: our cache folder) and end",
    )
    parser.add_argument(
        "--weights", action="store_true", help="list the published weights (cached, size, licence) and end"
    )
    options = parser.parse_args(argv)
    if options.weights:
        sys.stdout.write(weights_table() + "\n")
        return 0
    if options.fetch_assets is not None:
        return _fetch(options.fetch_assets)
    checks = run_checks(options.output, options.thread_cache, options.skip_threads)
    healthy = all(c.status != "fail" for c in checks)
    env = {k: v for c in checks for k, v in c.env.items()}
    report = (
        json.dumps({"healthy": healthy, "env": env, "checks": [asdict(c) for c in checks]}, indent=2) + "\n"
    )
    if options.report:
        options.report.parent.mkdir(parents=True, exist_ok=True)
        options.report.write_text(report)
    if options.json:
        sys.stdout.write(report)
    else:
        settings = " ".join(f"{k}={v}" for k, v in env.items())
        verdict = f"Recommended environment: {settings}" if healthy else "Something required is missing."
        sys.stdout.write(f"{format_table(checks)}\n\n{verdict}\n")
    return 0 if healthy else 1


if __name__ == "__main__":
    sys.exit(main())
