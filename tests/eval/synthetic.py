"""A run folder with made-up rows that say so, for the tests of the report."""

from __future__ import annotations

import io
import json

import numpy as np

from multismolvla.files import write_json
from multismolvla_eval.checks import faulted_keys
from multismolvla_eval.conditions import ALL_SUBSETS, resolve
from multismolvla_eval.plan import Counts, episodes
from multismolvla_eval.results import SCHEMA

CONDITIONS = (
    *ALL_SUBSETS,
    "C1:camera=image2",
    "C2:rgb=zero",
    *(f"C3:rgb=builtin_noise@{s}" for s in range(1, 6)),
    "C3:depth=holes@3",
    "C4:all=delay@2",
    "C5:depth=shift@8",
)
POLICIES = ("ours", "vanilla")
RUN = "feedc0ffee00"


def manifest_of(suites, conditions, names=POLICIES, **changes):
    policies = {
        name: {"checkpoint": f"made-up-{name}", "type": "synthetic", "parameters": 1234567, "path": f"outputs/{name}",
               "reads": ["observation.images.image", "observation.images.image2"], "origins": {"rgb": "sensor"}}
        for name in names
    }  # fmt: skip
    return {
        "schema": SCHEMA, "fingerprint": RUN, "synthetic": True, "created": "2020-01-01T00:00:00+00:00",
        "comparable": {"env": {"type": "toy", "options": {}}, "seed": 0, "corruption_version": "1"},
        "level": "quick",
        "suites": suites if isinstance(suites, dict) else {
            s: {"tasks": {"0": "put <it> there", "1": "take it & go"}, "max_steps": 9, "assets": "", "world": f"world of {s}"}
            for s in suites
        },
        "cameras": ["image", "image2"], "env": {"type": "toy", "origins": {}},
        "policies": policies, "baseline": names[-1], "conditions": [c.id for c in conditions],
        "clean_episodes": 10, "clean_seeds": 1, "episodes": 5, "seed": 0, "workers": 1, "versions": {"python": "3"},
        "commit": None,
        "hardware": {"processor": "abacus", "cores": 1, "memory_gb": 1, "system": "none", "renderer": "none",
                     "threads_per_worker": 1},
        "commands": [["--policies=[ours=outputs/ours]"]],
        **changes,
    }  # fmt: skip


def synthetic_run(
    folder,
    clean=(0.8, 0.7),
    suites=("toy",),
    texts=CONDITIONS,
    names=POLICIES,
    rate=None,
    seed=1,
    privileged=(),
    **changes,
):
    """A run folder whose successes are drawn at random around made-up rates.

    Args:
        folder: where to write.
        clean: clean success per policy.
        suites: names of suites with two tasks each, or the manifest's entries.
        texts: conditions.
        names: of the policies, the baseline last.
        rate: ``rate(episode) -> success rate`` instead of ``clean``.
        seed: of the draws.
        privileged: names of policies that read the simulator's state.
        changes: of the manifest.
    """
    folder.mkdir(parents=True, exist_ok=True)
    conditions = resolve(texts, ("image", "image2"))
    manifest = manifest_of(suites, conditions, names, **changes)
    for name in privileged:
        manifest["policies"][name]["privileged"] = True
    write_json(folder / "run.json", manifest)
    rng = np.random.default_rng(seed)
    rows = []
    tasks = {s: [0, 1] for s in suites}
    counts = Counts(manifest["clean_episodes"], manifest["episodes"], manifest["clean_seeds"])
    for e in episodes(list(names), tasks, conditions, counts, clips=1):
        usual = clean[names.index(e.policy)] * (1 if e.condition == "C0" else 0.6)
        success = bool(rng.random() < (usual if rate is None else rate(e)))
        row = row_of(e, manifest, success)
        if e.clip and e.episode == 0 and e.condition in ("C0", "C2:rgb=zero"):
            row["clip"] = f"clips/{e.policy}-{e.suite}-{e.condition[:2]}.webp"
            path = folder / row["clip"]
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(moving_picture())
        rows.append(row)
    write_rows(folder, rows)
    return folder


def write_rows(folder, rows):
    """As the runner does, but without waiting for the disk."""
    (folder / "episodes-0of1.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))


def row_of(e, manifest, success):
    faulted = faulted_keys(e.condition, manifest)
    facts = manifest["policies"][e.policy]
    return {
        "run": manifest["fingerprint"], "world": manifest["suites"][e.suite]["world"], "policy": e.policy,
        "checkpoint": facts["checkpoint"], "suite": e.suite, "task_id": e.task_id, "condition": e.condition,
        "episode": e.episode, "seed": e.seed, "init_state": e.episode, "success": success, "steps": 5,
        "steps_to_success": 5 if success else None, "cause": None if success else "time_out",
        "door": {k: e.condition if k in faulted else "clean" for k in facts["reads"]},
        "start": f"{e.suite}/{e.task_id}/{e.episode}", "clip": None,
        "seconds": {"total": 1.0, "policy": 0.1, "env": 0.5}, "gripper": {"closed": 0.5, "switches": 1},
        "peak_memory_mb": 1500,
    }  # fmt: skip


def moving_picture():
    from PIL import Image

    frames = [Image.new("RGB", (64, 48), (40 * i, 90, 160)) for i in range(3)]
    buffer = io.BytesIO()
    frames[0].save(buffer, format="webp", save_all=True, append_images=frames[1:], duration=80)
    return buffer.getvalue()
