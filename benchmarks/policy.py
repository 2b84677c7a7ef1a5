"""Seconds per training step and per action chunk: the 4M tower against SigLIP with the same language model.

    python benchmarks/policy.py                  # sizes of the mini preset
    python benchmarks/policy.py --preset=real    # 4M-21 B against SigLIP-512, SmolLM2 with 16 layers
    python benchmarks/policy.py --towers='[fourm, fourm+robult, fourm+rlbind]'
    python benchmarks/policy.py --towers='[fourm+disturbed, fourm+consistency]'

Random weights: time does not depend on their values. Pictures come from memory; reading a dataset, the
pre-processor and the optimizer's learning-rate schedule are not measured.
"""

from __future__ import annotations

import contextlib
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from support.measuring import Case, Machine, interleave, machine_line, ratios, table, write_json
from support.policy_models import DISTURBED, PRESETS, TOWERS, TRAINED, Options, PolicyFactory, sizes

if TYPE_CHECKING:
    import torch

BASELINE = "siglip"
DTYPES = ("float32", "bfloat16")
#: What a training step with an objective may cost, in steps of another tower.
AIMS = {
    "fourm+consistency": (1.6, DISTURBED),
    "fourm+robult": (1.3, "fourm"),
    "fourm+rlbind": (7.0, "fourm"),
}
QUANTITIES = {"train": "training step", "action": "action chunk", "vision": "visual tokens"}


@dataclass
class PolicyBenchmark:
    """Options of benchmarks/policy.py."""

    preset: str = (
        "tiny"  # tiny (the mini preset's sizes), real (4M-21 B, SigLIP-512, SmolLM2) or smallest (for tests)
    )
    # Of siglip, fourm, siglip+fourm, fourm+corruption (pictures corrupted in training, as the presets do it),
    # fourm+disturbed (with the mini preset's dropout, too), and of fourm+consistency (disturbed as that),
    # fourm+robult, fourm+rlbind (stage 1 of RLBind, five attack steps): a training objective beside the
    # stage's own.
    towers: list[str] = field(default_factory=lambda: ["siglip", "fourm"])
    modalities: list[str] = field(default_factory=list)  # of the 4M tower; empty = all the preset has
    # train: forward, backward, optimizer. action: one chunk with all denoising steps, batch size 1. vision:
    # the part of it until the visual tokens are ready, batch size 1.
    quantities: list[str] = field(default_factory=lambda: list(QUANTITIES))
    # connector or robust. Stage connector trains the bridge alone; vanilla SmolVLA has no such stage and
    # trains its expert there (or everything with --trained=full).
    stage: str = "robust"
    # lora: adapters on language model and expert, as stage robust does. expert: upstream's default. full:
    # everything but the frozen 4M tower. The 4M tower's bridge is always trained.
    trained: str = "lora"
    batch_size: int = 0  # of a training step; 0 = the preset's (tiny 32, real 1)
    rounds: int = 7
    warmup: int = 1
    device: str = "cpu"  # or cuda, mps
    dtype: str = "float32"  # bfloat16: autocast, as lerobot-train's mixed precision
    threads: int = 1  # of PyTorch on the CPU; 0 = PyTorch's choice
    seed: int = 0
    scratch: Path | None = None  # where a temporary folder for random weights is made (real: 0.4 to 2.5 GB)
    output: Path = Path("outputs/benchmarks/policy.json")

    def __post_init__(self) -> None:
        choices: list[tuple[str, Any, Any]] = [
            ("preset", [self.preset], PRESETS),
            ("towers", self.towers, TOWERS),
            ("quantities", self.quantities, tuple(QUANTITIES)),
            ("stage", [self.stage], ("connector", "robust")),
            ("trained", [self.trained], TRAINED),
            ("dtype", [self.dtype], DTYPES),
        ]
        for name, values, allowed in choices:
            if not values or [v for v in values if v not in allowed]:
                raise ValueError(f"--{name}={values}: expected of {list(allowed)}.")


def run(cfg: PolicyBenchmark) -> dict[str, Any]:
    """Build, measure, print and write. Returns what is written."""
    import torch

    if cfg.threads > 0:
        torch.set_num_threads(cfg.threads)
    preset = sizes(cfg.preset, cfg.stage)
    modalities = cfg.modalities or list(preset.domains)
    unknown = [m for m in modalities if m not in preset.domains]
    if unknown:
        raise ValueError(f"--modalities={modalities}: preset {cfg.preset!r} has {list(preset.domains)}.")
    options = Options(modalities, cfg.stage, cfg.trained, cfg.device, cfg.seed)
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir=cfg.scratch) as scratch:
        factory = PolicyFactory(preset, options, Path(scratch))
        policies = {}
        for tower in cfg.towers:
            print(f"building {tower}", flush=True)
            policies[tower] = factory.build(tower)
    chunk = next(iter(policies.values())).config.chunk_size
    batches = {
        "train": factory.batch(cfg.batch_size or preset.batch_size, chunk),
        "action": factory.batch(1, chunk),
        "vision": factory.batch(1, chunk),
    }
    machine = Machine()
    content: dict[str, Any] = {
        "benchmark": "policy",
        "config": asdict(cfg),
        "modalities": modalities,
        "flow_samples": next(iter(policies.values())).config.flow_samples,
        "batch_sizes": {q: len(batches[q]["action"]) for q in cfg.quantities},
        "parameters": {tower: _parameters(policy) for tower, policy in policies.items()},
        "results": {},
        "ratios": {},
        "objectives": {},
    }
    baseline = BASELINE if BASELINE in policies else cfg.towers[0]
    tables = []
    for quantity in cfg.quantities:
        cases = {tower: _case(quantity, cfg, policy, batches[quantity]) for tower, policy in policies.items()}
        series = interleave(cases, cfg.rounds, cfg.warmup, f"{cfg.preset}: {QUANTITIES[quantity]}")
        relative = ratios(series, baseline)
        content["results"][quantity] = {name: own.to_dict() for name, own in series.items()}
        content["ratios"][quantity] = relative
        if quantity == "train":
            content["objectives"] = {
                tower: ratios(series, against)[tower]
                for tower, (_, against) in AIMS.items()
                if tower in series and against in series
            }
        title = f"{QUANTITIES[quantity]}, batch size {content['batch_sizes'][quantity]}"
        tables.append(table(title, series, relative, baseline))
    content["machine"] = machine.report()
    if cfg.device.startswith("cuda"):
        content["peak_device_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
        content["device"] = torch.cuda.get_device_name()
    _print(cfg, content, tables)
    write_json(cfg.output, content)
    return content


def _case(quantity: str, cfg: PolicyBenchmark, policy: Any, batch: dict[str, torch.Tensor]) -> Case:
    """The timed work on one policy."""
    import torch

    def autocast() -> contextlib.AbstractContextManager[Any]:
        if cfg.dtype == "float32":
            return contextlib.nullcontext()
        return torch.autocast(torch.device(cfg.device).type, dtype=torch.bfloat16)

    wait = torch.cuda.synchronize if cfg.device.startswith("cuda") else None
    if quantity == "train":
        parameters = [p for p in policy.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=1e-5)

        def step() -> None:
            with autocast():
                loss, _ = policy.forward(dict(batch))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 10.0)
            optimizer.step()
            optimizer.zero_grad()
            policy.update()

        return Case(step, prepare=policy.train, wait=wait)

    def act() -> None:
        with torch.inference_mode(), autocast():
            policy.predict_action_chunk(dict(batch))

    plain = (
        policy.get_base_model() if hasattr(policy, "get_base_model") else policy
    )  # inside the LoRA wrapper

    def look() -> None:
        with torch.inference_mode(), autocast():
            pictures, _ = plain.prepare_images(dict(batch))
            for picture in pictures:  # ready-made tokens pass through where the 4M tower is in charge
                plain.model.vlm_with_expert.embed_image(picture)

    return Case(act if quantity == "action" else look, prepare=policy.eval, wait=wait)


def _parameters(policy: Any) -> dict[str, float]:
    """Millions of parameters: all, trained, and those of the towers; without the copies that LoRA keeps."""

    def millions(keep: Any) -> float:
        own = [(n, p) for n, p in policy.named_parameters() if ".original_module." not in n]
        return round(sum(p.numel() for n, p in own if keep(n, p)) / 1e6, 3)

    return {
        "total": millions(lambda _n, _p: True),
        "trained": millions(lambda _n, p: p.requires_grad),
        "siglip_and_connector": millions(
            lambda n, _p: "vlm.model.vision_model." in n or "vlm.model.connector." in n
        ),
        "fourm_tower": millions(lambda n, _p: "model.tower." in n),
        "bridge": millions(lambda n, _p: "model.bridge." in n),
    }


def _print(cfg: PolicyBenchmark, content: dict[str, Any], tables: list[str]) -> None:
    print(
        f"\npreset {cfg.preset}, 4M modalities {'+'.join(content['modalities'])}, stage {cfg.stage}, trained "
        f"{cfg.trained}, {cfg.device} {cfg.dtype}, {cfg.threads or 'default'} thread(s), two views, "
        f"{content['flow_samples']} draw(s) of noise per observation"
    )
    for tower, count in content["parameters"].items():
        print(f"  {tower}: " + ", ".join(f"{k} {v:g} M" for k, v in count.items() if v))
    print("\n".join(tables))
    for tower, relative in content["objectives"].items():
        median = relative["wall"]["median"]
        aim, against = AIMS[tower]
        met = "met" if median <= aim else "NOT met"
        print(f"aim for {tower}, at most {aim:g} times the step of {against}: {met} ({median:.2f})")
    print(machine_line(content["machine"]))


def main() -> None:
    """Command line entry."""
    import draccus

    run(draccus.parse(PolicyBenchmark))


if __name__ == "__main__":
    main()
