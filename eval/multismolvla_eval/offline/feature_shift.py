r"""How far do the tokens of a frozen vision tower move when its RGB is attacked: 4M's, beside SigLIP's?

A connector that is trained on attacked pictures (RLBind, stage 1) sees one token at a time. It can undo of a
movement what the token alone tells; the rest needs changes inside the tower. So this measures, for each layer
and each set of modalities that is there, the relative displacement of a token, |f(x') - f(x)| / |f(x)|, under
an attack on the tower's last layer, under random signs of the same size, and with the RGB of another frame,
which says what a large displacement is. ``left`` is what remains at the last layer after the best affine map
per token, fitted on one half of the frames and measured on the other. The attack did not know that map, so a
trained connector can be expected to do worse, not better.

Example:
    $ python -m multismolvla_eval.offline.feature_shift --dataset=outputs/mini/dataset --output=outputs/mini \
        --policies='[ours=outputs/mini/robust, vanilla=outputs/mini/base]'
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
from msgspec import Struct
from torch import Tensor, nn

from multismolvla.corruption.adversarial import LEVEL, Attack, attack, preserved_random_state, random_signs
from multismolvla.modalities import Modality, padding_mask_key
from multismolvla.system.command import AGAIN, entry_point, parse_options
from multismolvla.system.files import write_json
from multismolvla_eval.offline.attack_check import AttackedFrameOptions
from multismolvla_eval.offline.sensor_use import (
    Control,
    Frames,
    load_as_trained,
    load_frames,
    open_dataset,
    partners,
    show,
)
from multismolvla_eval.policies.attacker import Attacker, Observation
from multismolvla_eval.policies.checkpoints import NO_VISION, policy_hash
from multismolvla_eval.policies.features import Streams, streams_by_modality
from multismolvla_eval.policies.lerobot import FLOW_TYPES, stored_config

FILE, FIGURE = "feature_shift.json", "feature_shift.png"
ATTACKED, SIGNS, OTHERS = "attack", "random signs", "another frame"
#: Radius whose layers are drawn, in grey levels; the smallest that this literature calls robust.
DRAWN = 2.0
_RIDGE = 1e-3


@dataclass
class FeatureShiftOptions(AttackedFrameOptions):
    """How far does an attack on RGB move the tokens of the vision towers?"""

    # Frames at a time.
    batch_size: int = 4
    # Steps of a search (PGD).
    steps: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        Attack(LEVEL, "pgd", self.steps)


class Shift(Struct):
    """How far the tokens of one layer move, over all frames and cameras."""

    policy: str
    tower: str  # 4M or SigLIP
    modalities: str  # that are there, joined by "+"
    change: str  # attack, random signs, or another frame
    radius: float  # grey levels of 255; 0 for another frame
    layer: str  # `block 1` to the last one, `last` (after the final norm), `connector`
    tokens: str  # rgb, or other: those of the other modalities, which see RGB through attention alone
    n: int  # tokens
    median: float  # relative displacement
    high: float  # its 90th percentile
    left: float | None = None  # median after the best affine map per token; of the last layer


class FeatureShifts(Struct, kw_only=True):
    """``feature_shift.json``."""

    dataset: str
    episodes: list[int] | None
    frames: int
    steps: int
    seed: int
    checkpoints: dict[str, str]  # hash by policy
    left_out: dict[str, str]  # why, by policy
    rows: list[Shift]
    command: str


class _Tower:
    """The vision tower of a policy, with its layers' outputs.

    Args:
        attacker: of the policy.

    Attributes:
        name: 4M or SigLIP.
        layers: name -> module.
    """

    def __init__(self, attacker: Attacker) -> None:
        self._attacker = attacker
        model = attacker.inner.model
        fourm = getattr(model, "tower", None)
        self._fourm: Any = fourm
        self.name = "SigLIP" if fourm is None else "4M"
        if fourm is None:
            vision = model.vlm_with_expert.get_vlm_model().vision_model
            blocks, last = vision.encoder.layers, vision.post_layernorm
        else:
            fourm.drop_absent = False  # so that a token has its place whatever else is there
            blocks, last = fourm.encoder.encoder, fourm.encoder.encoder_norm
        self.layers: dict[str, nn.Module] = {f"block {i + 1}": block for i, block in enumerate(blocks)}
        self.layers["last"] = last

    def look(self, batch: Observation) -> _Seen:
        """The tokens of all layers for a raw batch."""
        size = len(batch["task"])
        with self._recorded() as (outputs, masks):
            tokens, alive = self._attacker.tokens(self._attacker.prepare(dict(batch)))
        layers = {name: _by_view(parts, size) for name, parts in outputs.items()}
        views = layers["last"].shape[1]
        if self._fourm is None:
            there = torch.stack([a[:, None].expand(-1, layers["last"].shape[2]) for a in alive], 1)
            kind = torch.ones_like(there)
        else:
            there = torch.cat([m.flatten(1) for m in masks.values()], 1).unflatten(0, (size, views))
            rgb = self._fourm.domains[Modality.RGB]
            lengths = {d: m.flatten(1).shape[1] for d, m in masks.items()}
            flags = [torch.full((n,), d in rgb) for d, n in lengths.items()]
            kind = torch.cat(flags).to(there.device).expand_as(there)
        # beyond the views stand global tokens, which belong to other modalities
        layers["connector"] = torch.stack(tokens[:views], 1)
        return _Seen(layers, there, kind, torch.stack(alive[:views], 1))

    @contextmanager
    def _recorded(self) -> Iterator[tuple[dict[str, list[Tensor]], dict[str, Tensor]]]:
        outputs: dict[str, list[Tensor]] = {name: [] for name in self.layers}
        masks: dict[str, Tensor] = {}

        def note(name: str) -> Any:
            def hook(module: nn.Module, args: Any, output: Any) -> None:
                outputs[name].append(output[0] if isinstance(output, tuple) else output)

            return hook

        handles = [module.register_forward_hook(note(name)) for name, module in self.layers.items()]
        if self._fourm is not None:
            handles.append(
                self._fourm.encoder.register_forward_pre_hook(lambda module, args: masks.update(args[1]))
            )
        try:
            yield outputs, masks
        finally:
            for handle in handles:
                handle.remove()


@dataclass
class _Seen:
    """Tokens of one look.

    Attributes:
        layers: name -> (B, V, N, D).
        there: bool (B, V, N), of the tower's tokens.
        rgb: bool (B, V, N), which of them are RGB's.
        alive: bool (B, V), of the connector's tokens.
    """

    layers: dict[str, Tensor]
    there: Tensor
    rgb: Tensor
    alive: Tensor

    def groups(self, layer: str) -> dict[str, Tensor]:
        """Rgb and, where there are any, other -> bool (B, V, N)."""
        if layer == "connector":
            return {"rgb": self.alive[..., None].expand(self.layers[layer].shape[:3])}
        found = {"rgb": self.there & self.rgb, "other": self.there & ~self.rgb}
        return {k: rows for k, rows in found.items() if bool(rows.any())}


def _by_view(parts: Sequence[Tensor], size: int) -> Tensor:
    """(B, V, N, D) of one call with the views folded in, or of one call per view."""
    return parts[0].unflatten(0, (size, -1)) if len(parts) == 1 else torch.stack(list(parts), 1)


def modality_sets(modalities: Sequence[str]) -> list[tuple[str, ...]]:
    """RGB alone, RGB with each other modality, and all."""
    others = [m for m in modalities if m != Modality.RGB]
    sets = [("rgb",), *(("rgb", m) for m in others)]
    return [*sets, ("rgb", *others)] if len(others) > 1 else sets


def measure(name: str, path: str, options: FeatureShiftOptions, rename_map: Mapping[str, str]) -> list[Shift]:
    """Load a policy and measure its tower.

    Raises:
        FileNotFoundError: there is no checkpoint or no dataset.
        ValueError: the dataset lacks the episodes, or the policy's pictures.
    """
    config = stored_config(path, options)
    config.device = options.device or config.device
    data = open_dataset(options, getattr(config, "depth_unit", "m"))
    attacker = Attacker(*load_as_trained(config, data.meta, rename_map))
    frames = load_frames(options, data, config, rename_map)
    streams = frames.streams(config)
    tower = _Tower(attacker)
    sets = modality_sets(list(streams)) if tower.name == "4M" else [("rgb",)]
    rows: list[Shift] = []
    for kept in sets:
        rows += _shifts(name, tower, attacker, frames, streams, kept, options)
    return rows


def _shifts(
    name: str, tower: _Tower, attacker: Attacker, frames: Frames, streams: Streams, kept: Sequence[str],
    options: FeatureShiftOptions,
) -> Iterator[Shift]:  # fmt: skip
    """All rows of one set of modalities."""
    other = partners(len(frames), options.seed)
    keys = {k: k for k in streams[Modality.RGB] if k in frames.observation}
    found: dict[tuple[str, float], list[tuple[_Seen, _Seen]]] = {}
    for number, rows in enumerate(torch.arange(len(frames)).split(options.batch_size)):
        raw = _only(show(frames, streams, Control("", "none"), rows, other), streams, kept)
        shuffled = _only(show(frames, streams, Control("", "shuffle", "rgb"), rows, other), streams, kept)
        pictures = {k: raw[k] for k in keys}
        available = attacker.available(raw, keys)
        with torch.no_grad():
            clean = tower.look(raw)
            found.setdefault((OTHERS, 0.0), []).append((clean, tower.look(shuffled)))
        for radius in sorted(options.radii):
            generator = torch.Generator().manual_seed(options.seed + number)

            def shift(changed: Mapping[str, Tensor], raw: Observation = raw, clean: _Seen = clean) -> Tensor:
                moved = tower.look({**raw, **changed}).layers["last"] - clean.layers["last"]
                squares = moved.float().pow(2).mean(-1) * clean.there
                return (squares.sum((1, 2)) / clean.there.sum((1, 2)).clamp_min(1)).cpu()

            with preserved_random_state():
                how = Attack(radius * LEVEL, "pgd", options.steps)
                result = attack(pictures, shift, how, generator, available)
                signs = random_signs(pictures, how.radius, generator, available)
            with torch.no_grad():
                for change, shown in ((ATTACKED, result.pictures), (SIGNS, signs)):
                    found.setdefault((change, radius), []).append((clean, tower.look({**raw, **shown})))
    for (change, radius), pairs in found.items():
        for layer in (*tower.layers, "connector"):
            for tokens in pairs[0][0].groups(layer):
                before, after = _tokens(pairs, layer, tokens)
                moved = (after - before).norm(dim=-1) / before.norm(dim=-1).clamp_min(1e-12)
                median, high = (moved.quantile(q).item() for q in (0.5, 0.9))
                left = _left(pairs, tokens) if (layer, change) == ("last", ATTACKED) else None
                place = (name, tower.name, "+".join(kept), change, radius, layer, tokens)
                yield Shift(*place, len(moved), median, high, left)


def _only(batch: Observation, streams: Streams, kept: Sequence[str]) -> Observation:
    """A raw batch in which the other modalities are announced as absent."""
    absent = torch.zeros(len(batch["task"]), dtype=torch.bool)
    lost = [k for m, by_key in streams.items() if m not in kept for k in by_key]
    return {**batch, **{padding_mask_key(k): absent for k in lost}}


def _tokens(pairs: Sequence[tuple[_Seen, _Seen]], layer: str, tokens: str) -> tuple[Tensor, Tensor]:
    """Clean and changed tokens (n, D) of one layer, of those that are there."""
    clean = [seen.layers[layer][seen.groups(layer)[tokens]] for seen, _ in pairs]
    changed = [after.layers[layer][seen.groups(layer)[tokens]] for seen, after in pairs]
    return torch.cat(clean).float(), torch.cat(changed).float()


def _left(pairs: Sequence[tuple[_Seen, _Seen]], tokens: str) -> float | None:
    """Median displacement after the best affine map per token; ``None`` for too few tokens to fit one."""
    if len(pairs) < 2:
        return None
    half = len(pairs) // 2
    (clean, moved), (held, held_moved) = (_tokens(p, "last", tokens) for p in (pairs[:half], pairs[half:]))
    width = clean.shape[1]
    if len(clean) < 2 * width:
        return None
    inputs = torch.cat([moved, moved.new_ones(len(moved), 1)], 1).double()
    gram = inputs.T @ inputs
    gram += _RIDGE * gram.diagonal().mean() * torch.eye(width + 1, dtype=gram.dtype, device=gram.device)
    # what is fitted is the way back, so that the ridge pulls towards changing nothing
    weights = torch.linalg.solve(gram, inputs.T @ (clean - moved).double()).float()
    mapped = held_moved + torch.cat([held_moved, held_moved.new_ones(len(held_moved), 1)], 1) @ weights
    return ((mapped - held).norm(dim=-1) / held.norm(dim=-1).clamp_min(1e-12)).median().item()


def why_left_out(path: str) -> str:
    """Why a policy cannot be measured; empty when it can."""
    if path.startswith(("builtin:", NO_VISION)):
        return "it looks at no picture"
    config = stored_config(path)
    if config.type not in FLOW_TYPES:
        return f"a {config.type} policy has no vision tower that is known here"
    fourm = getattr(config, "uses_fourm", False)
    if Modality.RGB not in (config.tower_modalities if fourm else streams_by_modality(config)):
        return "its vision tower reads no RGB"
    return ""


def collect(options: FeatureShiftOptions, command: Sequence[str] = ()) -> FeatureShifts:
    """Measure all policies and write ``feature_shift.json`` and the figure; returns what was written."""
    rows: list[Shift] = []
    checkpoints, left_out = {}, {}
    for name, path, rename_map in options.chosen():
        if why := why_left_out(path):
            left_out[name] = why
            continue
        checkpoints[name] = policy_hash(path)
        rows += measure(name, path, options, rename_map)
    found = FeatureShifts(
        dataset=str(options.dataset),
        episodes=options.episodes,
        frames=options.frames,
        steps=options.steps,
        seed=options.seed,
        checkpoints=checkpoints,
        left_out=left_out,
        rows=rows,
        command=shlex.join([Path(sys.executable).name, "-m", f"{__package__}.feature_shift", *command]),
    )
    options.output.mkdir(parents=True, exist_ok=True)
    write_json(options.output / FILE, msgspec.to_builtins(found))
    if rows:
        draw(found, options.output / FIGURE)
    return found


def draw(found: FeatureShifts, path: Path) -> None:
    """Displacement of RGB's tokens by layer, at one radius, and of the last layer by radius."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5), layout="constrained")
    by_layer, by_radius = figure.subplots(1, 2)
    rgb = [r for r in found.rows if r.tokens == "rgb"]
    radii = sorted({r.radius for r in rgb if r.radius})
    drawn = DRAWN if DRAWN in radii else radii[0]
    for n, (policy, kept) in enumerate(dict.fromkeys((r.policy, r.modalities) for r in rgb)):
        own = [r for r in rgb if (r.policy, r.modalities) == (policy, kept)]
        colour, label = f"C{n}", f"{policy} ({own[0].tower}): {kept}"
        for change, style in ((ATTACKED, "-o"), (SIGNS, ":"), (OTHERS, "--")):
            layers = [r for r in own if r.change == change and r.radius in (drawn, 0.0)]
            depth = [i / max(1, len(layers) - 1) for i in range(len(layers))]
            text = label if change == ATTACKED else None
            by_layer.plot(depth, [r.median for r in layers], style, color=colour, label=text, ms=3)
            last = sorted((r for r in own if (r.change, r.layer) == (change, "last")), key=lambda r: r.radius)
            if change == OTHERS:
                by_radius.axhline(last[0].median, ls="--", color=colour)
            else:
                by_radius.plot([r.radius for r in last], [r.median for r in last], style, color=colour, ms=3)
            left = [r.left for r in last if r.left is not None]
            if change == ATTACKED and len(left) == len(last):
                by_radius.plot([r.radius for r in last], left, "-.", color=colour)
    by_layer.set(
        title=f"by layer, radius {drawn:g}/255", xlabel="first block … last norm, connector",
        ylabel="median |f(x') - f(x)| / |f(x)| of RGB's tokens", yscale="log",
    )  # fmt: skip
    by_layer.set_xticks([])
    by_radius.set(title="last layer, by radius", xlabel="radius in 1/255", yscale="log")
    for style, text in (
        ("k-o", "attack"), ("k:", "random signs"), ("k--", "RGB of another frame"),
        ("k-.", "attack, after the best affine map per token"),
    ):  # fmt: skip
        by_radius.plot([], [], style, ms=3, label=text)
    figure.legend(loc="outside lower center", ncols=5, fontsize=8)
    figure.savefig(path, dpi=100)


def render(found: FeatureShifts) -> str:
    """The last layer and the connector as a table."""
    lines = [
        f"{'policy':<12}{'tower':<8}{'modalities':<24}{'layer':<10}{'tokens':<7}{'radius':>7}{'attack':>9}"
        f"{'90 %':>8}{'left':>8}{'signs':>8}{'other':>8}"
    ]
    known = {(r.policy, r.modalities, r.layer, r.tokens, r.change, r.radius): r for r in found.rows}
    for (policy, kept, layer, tokens, change, radius), row in known.items():
        if change != ATTACKED or layer not in ("last", "connector"):
            continue
        place = (policy, kept, layer, tokens)
        signs, others = known[(*place, SIGNS, radius)], known[(*place, OTHERS, 0.0)]
        left = "–" if row.left is None else f"{row.left:.3f}"
        lines.append(
            f"{policy:<12}{row.tower:<8}{kept:<24}{layer:<10}{tokens:<7}{radius:>7g}{row.median:>9.3f}"
            f"{row.high:>8.3f}{left:>8}{signs.median:>8.3f}{others.median:>8.3f}"
        )
    return "\n".join(lines)


@entry_point("error", errors=(ValueError, OSError, FloatingPointError), failure=2, interrupted=AGAIN)
def main(arguments: Sequence[str] | None = None) -> int:
    """Command line entry; 0, or 2 on an error."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = parse_options(FeatureShiftOptions, given)
    found = collect(options, given)
    sys.stdout.write(
        f"Median relative displacement of a token; PGD of {options.steps} steps on the last layer, radii in "
        "1/255. `left`: after the best affine map per token. `signs`: random signs. `other`: RGB of another "
        f"frame.\n\n{render(found)}\n"
    )
    for name, why in found.left_out.items():
        sys.stdout.write(f"{name}: left out, {why}\n")
    sys.stdout.write(f"written: {options.output / FILE}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
