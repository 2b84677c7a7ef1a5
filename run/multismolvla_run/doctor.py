"""``multismolvla-doctor``: can this machine do the job, and if not, which command mends it?

It installs nothing, and fetches only what ``--fetch_assets`` asks for. What may be broken (torch, graphics,
OpenCV) is imported in processes of its own, so that the doctor can still speak then.
"""

from __future__ import annotations

import ctypes.util
import importlib.metadata
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from multismolvla.pretrained import (
    LANGUAGE_MODEL,
    MODEL_FILES,
    SOURCES,
    bytes_of,
    is_hub_id,
    licence_of,
    needed_to_act,
)
from multismolvla.system.command import CommandError, entry_point, parse_options
from multismolvla.system.libero_assets import find_libero_assets, identify, missing_files, own_folder
from multismolvla.system.versions import installed
from multismolvla_run.fetch_assets import fetch_assets
from multismolvla_run.hub import cache_folder, cached_commit, is_cached
from multismolvla_run.threads import available_cores, seconds_per_step, training_threads

#: Debian packages of the software renderer and of OpenCV, as in `scripts/system-packages.sh`.
APT_PACKAGES = ("libegl1", "libegl-mesa0", "libgl1-mesa-dri", "libgl1", "libglib2.0-0")
_OWN = "lerobot_policy_multismolvla"
_MIN_DISK_GB = 3.0
_MIN_MEMORY_GB = 4.0

_RENDER = """
import mujoco, time
model = mujoco.MjModel.from_xml_string(
    "<mujoco><worldbody><light pos='0 0 3'/>"
    "<geom type='sphere' size='.2' rgba='1 0 0 1'/></worldbody></mujoco>")
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
_GPU = "import torch; print(torch.cuda.get_device_name(0) if torch.cuda.is_available() else 'none')"


@dataclass
class DoctorOptions:
    """Options of ``multismolvla-doctor``."""

    json: bool = False  # print JSON instead of a table
    report: Path | None = None  # also write the JSON into this file
    output: Path = Path("outputs")  # folder the job will write to; its disk is looked at
    measure_threads: bool = False  # measure how many threads train fastest (half a minute)
    fetch_assets: bool = False  # download LIBERO's meshes and scenes, and end
    # where to; default: our cache folder, in which the environments find them by themselves
    assets: Path | None = None
    weights: bool = False  # list the published weights (cached, size, licence), and end
    # folder of a policy (.../pretrained_model): list what it reads when it acts (here or not, size, licence)
    policy: Path | None = None


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

    def __str__(self) -> str:
        remedy = f"\n{'':24}-> {self.remedy}" if self.remedy else ""
        return f"{self.status:>4}  {self.name:<16}  {self.found}{remedy}"


def _apt_command(*packages: str) -> str:
    root = "" if os.geteuid() == 0 else "sudo "
    install = f"apt-get install -y --no-install-recommends {' '.join(packages)}"
    return f"{root}apt-get update && {root}{install}"


def run_python(code: str, timeout_s: float = 60.0, **env: str) -> tuple[bool, str]:
    """Run Python code in a process of its own: whether it ended well, and the last line it printed."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, **env},
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False, f"no answer within {timeout_s:.0f} s"
    lines = (done.stderr if done.returncode else done.stdout).strip().splitlines()
    return done.returncode == 0, lines[-1] if lines else f"exit code {done.returncode}"


def check_python() -> Check:
    """Which Python runs; on one older than 3.12 this program does not start."""
    return Check("Python", "ok", f"{platform.python_version()} ({sys.prefix})")


def check_packages() -> Check:
    """What the project requires is installed, in the versions that it requires."""
    from packaging.requirements import Requirement

    wrong = []
    try:
        wanted = importlib.metadata.requires(_OWN) or []
    except importlib.metadata.PackageNotFoundError:
        return Check("Packages", "fail", f"{_OWN} is not installed, so LeRobot does not find it", "make venv")
    for requirement in map(Requirement, wanted):
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is not installed")
        else:
            if not requirement.specifier.contains(version, prereleases=True):
                wrong.append(f"{requirement.name} {version}, need {requirement.specifier}")
    if wrong:
        return Check("Packages", "fail", "; ".join(wrong), "make venv")
    return Check("Packages", "ok", ", ".join(f"{name} {version}" for name, version in installed().items()))


def render_works(backend: str) -> tuple[float | None, str]:
    """Seconds per 64x64 picture by MuJoCo with a ``MUJOCO_GL``, or ``None`` and the reason."""
    good, said = run_python(_RENDER, MUJOCO_GL=backend, PYOPENGL_PLATFORM=backend)
    return (float(said), "") if good else (None, said)


def check_rendering() -> Check:
    """A picture can be rendered without a display, by EGL or else by OSMesa."""
    errors = []
    for backend in ("egl", "osmesa"):
        seconds, error = render_works(backend)
        if seconds is not None:
            found = f"{backend}, {1000 * seconds:.1f} ms for a 64x64 test picture"
            return Check("Rendering", "ok", found, env={"MUJOCO_GL": backend})
        errors.append(f"{backend}: {error}")
    return Check("Rendering", "fail", "; ".join(errors), _apt_command(*APT_PACKAGES))


def check_opencv() -> Check:
    """OpenCV loads (its wheel links to libGL and glib of the system)."""
    good, said = run_python("import cv2; print(cv2.__version__)")
    remedy = "" if good else _apt_command("libgl1", "libglib2.0-0")
    return Check("OpenCV", "ok" if good else "fail", said, remedy)


def check_disk(folder: Path) -> Check:
    """There is room for the demonstrations, checkpoints and clips in ``folder``, which need not exist."""
    existing = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    free = shutil.disk_usage(existing).free / 1e9
    found = f"{free:.0f} GB free in {existing}"
    if free < _MIN_DISK_GB:
        remedy = f"free {_MIN_DISK_GB:.0f} GB, or choose another folder with --output"
        return Check("Disk", "fail", found, remedy)
    return Check("Disk", "ok", found)


def check_machine() -> Check:
    """Cores that may be used, and memory."""
    cores = available_cores()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    found = f"{cores} core{'s' if cores > 1 else ''}, {memory:.0f} GB memory"
    if memory < _MIN_MEMORY_GB:
        return Check("Machine", "note", found, "with less than 4 GB run record and eval with --workers=1")
    return Check("Machine", "ok", found)


def check_gpu() -> Check:
    """Whether there is a CUDA device; none is needed for the mini preset."""
    good, said = run_python(_GPU)
    if not good:
        return Check("GPU", "fail", f"torch does not load: {said}", "make venv")
    if said == "none":
        return Check("GPU", "note", "none; the mini preset is made for CPUs")
    return Check("GPU", "ok", said)


def check_video() -> Check:
    """Whether LeRobot's default decoder, torchcodec, finds FFmpeg; else PyAV, which brings its own, decodes.

    ``--dataset.video_backend=pyav`` does not avoid the warning: lerobot 0.6.1 tries torchcodec once more when
    it builds its options.
    """
    if ctypes.util.find_library("avcodec"):
        return Check("Video", "ok", "FFmpeg is there")
    remedy = f"only for long videos, which torchcodec decodes faster: {_apt_command('ffmpeg')}"
    return Check("Video", "note", "no FFmpeg: LeRobot's programs say so at length and take PyAV", remedy)


def check_hub() -> Check:
    """Whether the model hub can be reached, and where its cache lies. The mini preset needs neither."""
    cache = cache_folder()
    held = len([*cache.glob("models--*"), *cache.glob("datasets--*")])
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
    remedy = "only for official presets: which ones, says `python train.py PRESET --dry-run`; all: --weights"
    return Check("Official weights", "note", found, remedy)


def weights_table() -> str:
    """All published weights that the package can read: cached or not, size, licence."""
    width = max(len(repo) for repo in SOURCES)
    rows = [("cached", "repository", "size", "licence")]
    rows += [("yes" if is_cached(s.repo) else "no", s.repo, s.size, s.licence) for s in SOURCES.values()]
    return "\n".join(f"{there:<6}  {repo:<{width}}  {size:>18}  {terms}" for there, repo, size, terms in rows)


def policy_table(folder: Path) -> tuple[str, bool]:
    """The networks that a policy reads, and whether all of them are here.

    Raises:
        CommandError: the folder holds no policy.
    """
    config = folder / "config.json"
    if not config.is_file():
        raise CommandError(
            f"--policy={folder} has no config.json. Name the folder of a policy (pretrained_model)."
        )
    policy = json.loads(config.read_text())
    needed = needed_to_act(policy)
    revisions = {recipe["model"]: recipe["revision"] for recipe in policy.get("estimators", {}).values()}
    adapters = folder / "adapter_config.json"
    if adapters.is_file():
        base = json.loads(adapters.read_text()).get("base_model_name_or_path")
        needed = {str(base): "the policy that the adapters belong to"} | needed
    rows, total = [("here", "from", "size", "what for", "licence")], bytes_of(folder)
    missing, local, unknown = list[str](), list[str](), 0
    for where, purpose in needed.items():
        hub = is_hub_id(where)
        revision = revisions.get(where)
        files = SOURCES[LANGUAGE_MODEL].files if where == policy.get("vlm_model_name") else MODEL_FILES
        place = cached_commit(where, revision, files) if hub else Path(where)
        here = place is not None and place.exists()
        known = bytes_of(where if where in SOURCES or place is None else place)
        size = SOURCES[where].size if where in SOURCES else f"{known / 1e6:.1f} MB" if here else "unknown"
        rows.append(("yes" if here else "no", where, size, purpose, licence_of(where)))
        if not here and hub:
            missing.append(f"{where} at revision {revision}" if revision else where)
        elif not here:
            local.append(where)
        total, unknown = total + known, unknown + (known == 0)
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = ["  ".join((*(t.ljust(w) for t, w in zip(row, widths, strict=False)), row[4])) for row in rows]
    left_out = f", {unknown} of unknown size not counted" if unknown else ""
    lines.append(
        f"Files of weights, with the policy's own: {total / 1e9:.2f} GB{left_out}. In memory they take at "
        "most about that, since of 4M-21, its tokenizers and ImageBind only parts are read; pictures and "
        "activations come on top."
    )
    if missing:
        lines.append(f"Not here: {', '.join(missing)}. Connect once, or copy them into the hub's cache.")
    if local:
        lines.append(
            f"Folders or files that are not here: {', '.join(local)}. Copy them from where the policy was "
            "trained, or name others (--policy.estimator_sources, --policy.tokenizer_sources, ...)."
        )
    return "\n".join(lines), not missing and not local


def check_libero_assets() -> Check:
    """LIBERO's own meshes and scenes. The mini suite brings its own and needs none of them."""
    name = "LIBERO assets"
    remedy = (
        "only for the LIBERO suites: multismolvla-doctor --fetch-assets, or set MULTISMOLVLA_LIBERO_ASSETS"
    )
    try:
        folder = find_libero_assets()
    except FileNotFoundError as error:
        return Check(name, "note", str(error), remedy)
    if folder is None:
        return Check(name, "note", "absent", remedy)
    if missing := missing_files(folder):
        found = f"{folder} lacks {len(missing)} files of the four suites, e.g. {missing[0]}"
        return Check(name, "note", found, remedy)
    identity = identify(folder)
    kinds = {
        True: "some are visual stand-ins",
        False: "LIBERO's own as far as known",
        None: "some are unknown",
    }
    return Check(name, "ok", f"{folder} (assets {identity.hash}, {kinds[identity.standins]})")


def check_threads(measure: bool) -> Check:
    """How many threads training takes, and on request whether another setting is faster."""
    default = " ".join(f"{k}={v}" for k, v in training_threads().items() if k != "MKL_NUM_THREADS")
    if not measure:
        found = f"{default} for training, unless the preset says otherwise; to measure: --measure_threads"
        return Check("Threads", "ok", found)
    try:
        seconds = seconds_per_step()
    except subprocess.CalledProcessError as error:
        return Check("Threads", "fail", f"a small training step fails: {error.stderr[-200:]}", "make venv")
    found = "; ".join(f"{setting}: {1000 * value:.0f} ms/step" for setting, value in seconds.items())
    best = min(seconds, key=lambda setting: seconds[setting])
    if seconds[best] > 0.8 * seconds[default]:
        return Check("Threads", "ok", f"{found}; training takes {default}")
    return Check("Threads", "note", f"{found}; training takes {default}", f"{best} python train.py ...")


def run_checks(options: DoctorOptions) -> Iterator[Check]:
    """Examine one thing after the other, those first that are known at once."""
    yield from (check_python(), check_machine(), check_disk(options.output), check_video())
    for check in (check_packages, check_rendering, check_opencv, check_gpu):
        yield check()
    yield from (check_hub(), check_weights(), check_libero_assets(), check_threads(options.measure_threads))


@entry_point("error", interrupted="\nInterrupted. What was fetched is kept; the same command continues.")
def main(argv: Sequence[str] | None = None) -> int:
    """Command line. Returns 1 only when something required is missing."""
    options = parse_options(DoctorOptions, argv)
    if options.weights:
        sys.stdout.write(weights_table() + "\n")
        return 0
    if options.policy is not None:
        text, complete = policy_table(options.policy)
        sys.stdout.write(text + "\n")
        return 0 if complete else 1
    if options.fetch_assets:
        sys.stdout.write("\n".join(fetch_assets(options.assets or own_folder())) + "\n")
        return 0
    checks = []
    for check in run_checks(options):
        checks.append(check)
        if not options.json:
            sys.stdout.write(f"{check}\n")
            sys.stdout.flush()
    healthy = all(check.status != "fail" for check in checks)
    env = {name: value for check in checks for name, value in check.env.items()}
    report = json.dumps({"healthy": healthy, "env": env, "checks": [asdict(c) for c in checks]}, indent=1)
    if options.report:
        options.report.parent.mkdir(parents=True, exist_ok=True)
        options.report.write_text(report + "\n")
    if options.json:
        sys.stdout.write(report + "\n")
    else:
        settings = " ".join(f"{name}={value}" for name, value in env.items())
        verdict = f"Recommended environment: {settings}" if healthy else "Something required is missing."
        sys.stdout.write(f"\n{verdict}\n")
    return 0 if healthy else 1


if __name__ == "__main__":
    sys.exit(main())
