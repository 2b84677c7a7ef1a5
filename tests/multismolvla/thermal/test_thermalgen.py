"""ThermalGen: recorded numbers, official inventories, samplers, strict loading, noise, bad input."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nearness import assert_near
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_thermalgen import official_config, write_tiny_thermalgen
from torch import Tensor

from multismolvla.thermal.sampler import (
    METHODS,
    TABLEAUS,
    Sampler,
    evaluation_times,
    evaluations,
    integrate,
    noise_for,
)
from multismolvla.thermal.sit import SiT, SiTConfig, position_table, time_features
from multismolvla.thermal.thermalgen import ThermalGen
from multismolvla.thermal.thermalgen_config import ThermalGenConfig

FRAMES = [("a", 0), ("a", 1), ("b", 0)]


# ---------------------------------------------------------------- golden numbers


class Golden:
    """One of the two recorded denoisers with its case."""

    def __init__(self, path: Path) -> None:
        with safe_open(path, "pt") as file:
            meta = {key: json.loads(value) for key, value in file.metadata().items()}
        data = load_file(path)
        sizes, self.case = meta["config"], meta["cases"]["square."]
        self.net = SiT(
            SiTConfig(
                sizes["hidden_size"],
                sizes["depth"],
                sizes["num_heads"],
                injection=sizes["injection_args"]["injection_method"],
            )
        )
        state = {k.removeprefix("state."): v for k, v in data.items() if k.startswith("state.")}
        self.net.load_state_dict(state, strict=True)
        self.out = {k.removeprefix("square.out."): v for k, v in data.items() if ".out." in k}
        self.x, self.t, self.x_rgb = (data[f"square.in.{k}"] for k in ("x", "t", "x_rgb"))
        self.y, self.cfg_y = (data[f"square.in.{k}"].long() for k in ("y", "cfg_y"))

    def sample(self, labels: Tensor | None = None, **options: Any) -> Any:
        return Sampler(self.net).sample(self.x, self.x_rgb, self.y if labels is None else labels, **options)


def as_in_the_reference(
    net: SiT, x_rgb: Tensor, labels: Tensor, scale: float = 1.0
) -> Callable[[float, Tensor], Tensor]:
    """The velocity with everything computed at every evaluation."""

    def velocity(t: float, z: Tensor) -> Tensor:
        times = torch.full((len(z),), t)
        without = torch.full_like(labels, net.config.null_label)
        towards, away = (net(z, times, y, x_rgb).float() for y in (labels, without))
        return towards if scale == 1.0 else away + scale * (towards - away)

    return velocity


@pytest.fixture(scope="module", params=["thermalgen_sit_tiny", "thermalgen_sit_concat_tiny"])
def sit(golden: Path, request: pytest.FixtureRequest) -> Golden:
    return Golden(golden / f"{request.param}.safetensors")


@torch.no_grad()
def test_golden_embeddings_and_velocity(sit: Golden) -> None:
    assert_near(position_table(4, 4, sit.net.config.hidden), sit.out["pos_embed"], 1e-6)
    assert_near(time_features(sit.t), sit.out["t_sinusoid"])
    assert_near(sit.net.t_embedder(sit.t), sit.out["t_emb"])
    assert_near(sit.net(sit.x, sit.t, sit.y, sit.x_rgb), sit.out["velocity"])


@torch.no_grad()
def test_golden_guided_velocity(sit: Golden) -> None:
    labels = sit.cfg_y[: len(sit.x)]
    assert sit.cfg_y[len(sit.x) :].eq(sit.net.config.null_label).all()
    scale = sit.case["cfg_scale"]
    both = (
        Sampler(sit.net).field(sit.x_rgb, labels, scale),
        as_in_the_reference(sit.net, sit.x_rgb, labels, scale),
    )
    # the recorded case has another time per sample, the field one for all
    for field in both:
        for sample, t in enumerate(sit.t.tolist()):
            assert_near(field(t, sit.x)[sample], sit.out["velocity_cfg"][sample])


@pytest.mark.parametrize(("method", "points"), [("euler", 4), ("midpoint", 3), ("rk4", 3)])
def test_golden_fixed_steps(sit: Golden, method: str, points: int) -> None:
    solution = sit.sample(method=method, steps=points - 1)
    assert_near(torch.stack(solution.trajectory), sit.out[f"ode_{method}_{points}"])
    assert torch.equal(solution.latent, solution.trajectory[-1])
    assert solution.evaluations == sit.case["nfe"][method] == evaluations(method, points - 1)


def test_golden_guided_solution(sit: Golden) -> None:
    solution = sit.sample(sit.cfg_y[:2], steps=2, cfg_scale=sit.case["cfg_scale"])
    assert_near(solution.latent, sit.out["ode_euler_3_cfg_final"])


def test_golden_adaptive_solutions(sit: Golden) -> None:
    default = sit.sample(method="dopri5")
    assert_near(default.latent, sit.out["ode_dopri5_final"], 1e-2)
    assert default.evaluations == sit.case["nfe"]["dopri5"]
    tight = sit.sample(method="dopri5", atol=1e-7, rtol=1e-7)
    assert_near(tight.latent, sit.out["ode_converged_final"], 1e-4)
    assert_near(sit.sample(method="heun", steps=150).latent, sit.out["ode_converged_final"], 1e-4)


def test_golden_hub_layout_end_to_end(golden: Path) -> None:
    folder = golden / "thermalgen_hub_tiny"
    data = load_file(folder / "cases.safetensors")
    model = ThermalGen.from_pretrained(folder)
    rgb, labels = data["in.rgb_u8"].float() / 255, data["in.y"].long()
    pixels = model.preprocess(rgb, 64)
    assert_near(pixels, data["expect.rgb_preprocessed"], 1e-6)
    posterior = model.RGB_vae.encode(pixels).latent_dist
    assert_near(posterior.mean, data["out.rgb_latent_mean"])
    assert_near(posterior.logvar, data["out.rgb_latent_logvar"])
    x_rgb = model.encode_rgb(pixels, data["in.posterior_noise"])
    assert_near(x_rgb, data["out.x_rgb"])
    latent = model.sampler.sample(data["in.z0"], x_rgb, labels, steps=3).latent
    assert_near(latent, data["out.latent"])
    assert_near(model.decode(latent), data["out.thermal01"])
    assert_near(model.decode(latent), (data["out.decoded"] * 0.5 + 0.5).clamp(0, 1))
    options: dict[str, Any] = {"noise": data["in.z0"], "label": labels, "size": 64, "output_size": (64, 64)}
    mean = model.sampler.sample(data["in.z0"], model.encode_rgb(pixels), labels, steps=1).latent
    assert_near(mean, data["out.mean_euler2.latent"])
    assert_near(model.generate(rgb, **options, steps=1), data["out.mean_euler2.thermal01"])


@pytest.mark.parametrize("size", ["XL", "L", "B"])
def test_official_inventory(golden: Path, size: str) -> None:
    tensors = json.loads((golden / "official_keys" / f"thermalgen_{size}-2.json").read_text())["tensors"]
    with torch.device("meta"):
        model = ThermalGen(ThermalGenConfig(arch=size))
    built = {f"<sit>.{k}": list(v.shape) for k, v in model.ema.state_dict().items()}
    assert built == {k: s for k, (_, s) in tensors.items() if k.startswith("<sit>.")}
    if size == "XL":  # the autoencoders are listed once; only the used halves are built
        for name, parts in (
            ("RGB_vae", ("encoder", "quant_conv")),
            ("thermal_vae", ("decoder", "post_quant_conv")),
        ):
            used = {f"{name}.{k}": list(v.shape) for k, v in getattr(model, name).state_dict().items()}
            assert used == {
                k: s for k, (_, s) in tensors.items() if k.startswith(tuple(f"{name}.{p}." for p in parts))
            }


def test_concat_at_official_size_has_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        net = SiT(ThermalGenConfig(arch="L", injection="concat").denoiser)
    assert round(sum(p.numel() for p in net.parameters()) / 1e6) == 458


def test_positions_of_a_grid_that_is_not_square_follow_the_reference() -> None:
    table, dim = position_table(2, 3, 8), 8
    w = torch.tensor([1.0, 0.01])
    for m in range(6):
        a, b = m // 2, m % 2  # by the number of rows, not of columns
        expected = torch.cat([(a * w).sin(), (a * w).cos(), (b * w).sin(), (b * w).cos()])
        assert torch.allclose(table[m], expected, atol=1e-6)
    assert table.shape == (6, dim)


# ---------------------------------------------------------------- samplers


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("midpoint", 2), ("heun", 2), ("rk4", 4)])
def test_order_of_each_method(method: str, order: int) -> None:
    """Halving the step divides the error by 2 to the order; dz/dt = z cos(5 t) has a known solution."""

    def error(steps: int) -> float:
        z = torch.ones(1, dtype=torch.float64)
        times = []

        def velocity(t: float, state: Tensor) -> Tensor:
            times.append(t)
            return state * torch.tensor(5 * t, dtype=torch.float64).cos()

        final = integrate(velocity, z, steps, method)[-1]
        assert list(dict.fromkeys(times)) == evaluation_times(method, steps)
        return abs(final.item() - torch.tensor(1.0, dtype=torch.float64).mul(5).sin().div(5).exp().item())

    assert error(64) / error(128) == pytest.approx(2**order, rel=0.1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_thermalgen(tmp_path_factory.mktemp("thermalgen"))


@pytest.fixture(scope="module")
def model(folder: Path) -> ThermalGen:
    return ThermalGen.from_pretrained(folder)


@pytest.fixture(scope="module")
def rgb() -> Tensor:
    return torch.rand(3, 3, 40, 52, generator=torch.Generator().manual_seed(1))


LABELS = pytest.mark.parametrize(("labels", "scale"), [((5, 5, 5), 1.0), ((5, 0, 5), 1.0), ((5, 0, 7), 3.0)])


@torch.no_grad()
@pytest.mark.parametrize("method", sorted(TABLEAUS))
@LABELS
def test_what_is_cached_changes_nothing(
    model: ThermalGen, method: str, labels: tuple[int, ...], scale: float
) -> None:
    z = noise_for(FRAMES, "frame", (4, 4, 6))
    x_rgb = noise_for(FRAMES, "frame", (4, 4, 6), seed=1)
    y = torch.tensor(labels)
    cached = model.sampler.sample(z, x_rgb, y, method=method, steps=3, cfg_scale=scale)
    naive = integrate(as_in_the_reference(model.ema, x_rgb, y, scale), z, 3, method)
    assert_near(cached.latent, naive[-1], 1e-6)


@torch.no_grad()
@LABELS
def test_what_is_cached_changes_nothing_at_the_times_an_adaptive_solver_asks_for(
    model: ThermalGen, labels: tuple[int, ...], scale: float
) -> None:
    # The field and not the solution: rounding in the last bit can turn dopri5's accepted step into a rejected
    # one, which moves the solution by as much as its tolerances allow.
    z = noise_for(FRAMES, "frame", (4, 4, 6))
    x_rgb = noise_for(FRAMES, "frame", (4, 4, 6), seed=1)
    cached = model.sampler.field(x_rgb, torch.tensor(labels), scale)
    naive = as_in_the_reference(model.ema, x_rgb, torch.tensor(labels), scale)
    for t in (0.0, 0.0137, 0.42, 0.9999, 1.0):
        assert_near(cached(t, z), naive(t, z), 1e-6)


def test_what_is_cached_runs_once_per_picture_and_tables_once_at_all(folder: Path, rgb: Tensor) -> None:
    model = ThermalGen.from_pretrained(folder)
    calls = {"rgb": 0, "time": 0}
    block = model.ema.blocks[0]
    block.cross_attn.qkv_RGB.register_forward_hook(lambda *_: calls.update(rgb=calls["rgb"] + 1))
    block.adaLN_modulation.register_forward_hook(lambda *_: calls.update(time=calls["time"] + 1))
    for _ in range(2):
        model.generate(rgb, frames=FRAMES, size=32, steps=4)
    assert calls == {"rgb": 2, "time": 1}


def test_tables_do_not_outlive_the_weights_they_were_made_from(folder: Path, rgb: Tensor) -> None:
    model = ThermalGen.from_pretrained(folder)
    before = model.generate(rgb, frames=FRAMES, size=32)
    changed = {k: v * 1.1 for k, v in model.state_dict().items()}
    model.load_state_dict(changed)
    after = model.generate(rgb, frames=FRAMES, size=32)
    assert not torch.allclose(before, after)
    model.sampler.forget()
    assert torch.equal(after, model.generate(rgb, frames=FRAMES, size=32))
    model.to(torch.bfloat16)
    assert model.generate(rgb, frames=FRAMES, size=32).isfinite().all()


# ---------------------------------------------------------------- noise and pictures


def test_a_frame_looks_the_same_alone_and_in_any_batch(model: ThermalGen, rgb: Tensor) -> None:
    together = model.generate(rgb, frames=FRAMES, size=32)
    for i in range(3):
        alone = model.generate(rgb[i : i + 1], frames=FRAMES[i : i + 1], size=32)
        assert_near(alone, together[i : i + 1])
    back = model.generate(rgb.flip(0), frames=FRAMES[::-1], size=32).flip(0)
    assert_near(back, together)


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 2**31))
@settings(max_examples=25, deadline=None)
def test_noise_belongs_to_frames(episode: int, frame: int, seed: int) -> None:
    keys: list[tuple[int | str, int]] = [(episode, frame), (episode, frame + 1), (episode + 1, frame)]
    by_frame, by_episode = (noise_for(keys, mode, (2, 3), seed=seed) for mode in ("frame", "episode"))
    assert torch.equal(noise_for(keys[1:], "frame", (2, 3), seed=seed), by_frame[1:])
    assert not torch.equal(by_frame[0], by_frame[1])
    assert not torch.equal(by_frame[0], by_frame[2])
    assert torch.equal(by_episode[0], by_episode[1])
    assert not torch.equal(by_episode[0], by_episode[2])
    fixed = noise_for(keys, "fixed", (2, 3), seed=seed)
    assert torch.equal(fixed[0], fixed[2])
    assert not torch.equal(fixed, noise_for(keys, "fixed", (2, 3), seed=seed + 1))


def test_noise_is_normal_and_the_same_on_every_machine() -> None:
    noise = noise_for([(0, i) for i in range(64)], "frame", (4, 32, 32))
    assert abs(float(noise.mean())) < 0.01
    assert abs(float(noise.std()) - 1) < 0.01
    assert noise[0, 0, 0, :3].tolist() == pytest.approx(PINNED, abs=1e-5)


# Annotated data sets depend on it: a change here is a change of every synthesised picture.
PINNED = [0.091897, -1.129621, -1.129552]


def test_everything_that_should_changes_the_picture(model: ThermalGen, rgb: Tensor) -> None:
    first = model.generate(rgb, frames=FRAMES, size=32)
    assert torch.equal(first, model.generate(rgb, frames=FRAMES, size=32))
    assert torch.equal(first, model.generate(rgb, frames=FRAMES, size=32, label=1000))
    assert first.shape == (3, 1, 40, 52)
    assert first.dtype == torch.float32
    assert 0 <= first.min() < first.max() <= 1
    changes: list[dict[str, Any]] = [
        {"steps": 2},
        {"method": "midpoint"},
        {"label": 7},
        {"seed": 1},
        {"noise_mode": "episode"},
        {"size": 48},
    ]
    for change in changes:
        other = model.generate(rgb, **{"frames": FRAMES, "size": 32} | change)
        assert (first - other).abs().max() > 1e-4, change
    assert (first - model.generate(1 - rgb, frames=FRAMES, size=32)).abs().max() > 1e-2
    guided = [model.generate(rgb, frames=FRAMES, size=32, label=7, cfg_scale=s) for s in (1.0, 4.0)]
    assert (guided[0] - guided[1]).abs().max() > 1e-4
    state = torch.random.get_rng_state()
    drawn = model.generate(rgb, noise=noise_for(FRAMES, "frame", (4, 4, 4)), size=32)
    assert torch.equal(drawn, first)
    assert torch.equal(state, torch.random.get_rng_state())


def test_resizing_is_on_rounded_pixels(model: ThermalGen) -> None:
    """A picture between two 8-bit levels counts as the nearer one, before and after resizing."""
    flat = torch.full((1, 3, 40, 52), 99.7 / 255)
    assert_near(model.preprocess(flat, 32), torch.full((1, 3, 32, 32), 100 / 255 * 2 - 1), 1e-6)
    levels = (model.preprocess(torch.rand(1, 3, 40, 52), 32) + 1) / 2 * 255
    assert (levels - levels.round()).abs().max() < 1e-4


def test_reduced_precision(folder: Path, rgb: Tensor) -> None:
    exact = ThermalGen.from_pretrained(folder).generate(rgb, frames=FRAMES, size=32)
    half = ThermalGen.from_pretrained(folder, dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    out = half.generate(rgb, frames=FRAMES, size=32)
    assert out.dtype == torch.float32
    assert (out - exact).abs().max() < 0.1
    fp16 = ThermalGen.from_pretrained(folder, dtype=torch.float16)
    assert {p.dtype for p in fp16.ema.parameters()} == {torch.float16}
    assert {p.dtype for vae in (fp16.RGB_vae, fp16.thermal_vae) for p in vae.parameters()} == {torch.float32}
    assert (fp16.generate(rgb, frames=FRAMES, size=32) - exact).abs().max() < 0.02


# ---------------------------------------------------------------- loading


def rewrite(folder: Path, target: Path, change: Any) -> Path:
    """A copy of the tiny checkpoint after ``change(state)``."""
    target.mkdir(exist_ok=True)
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, target / "model.safetensors")
    (target / "config.json").write_text((folder / "config.json").read_text())
    return target


def reprefix(state: dict[str, Tensor], factor: float = 1.0, keep: bool = False) -> None:
    for key in [k for k in state if k.startswith("ema.")]:
        state["model." + key.removeprefix("ema.")] = state[key] * factor
        if not keep:
            del state[key]


def test_loaded_model_is_frozen_and_in_evaluation_mode(model: ThermalGen) -> None:
    assert not any(m.training for m in model.modules())
    assert not any(p.requires_grad for p in model.parameters())


def test_either_prefix_is_read_and_averaged_weights_go_first(
    folder: Path, model: ThermalGen, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    raw = ThermalGen.from_pretrained(rewrite(folder, tmp_path / "raw", reprefix))
    both = ThermalGen.from_pretrained(
        rewrite(folder, tmp_path / "both", lambda s: reprefix(s, 2.0, keep=True))
    )
    for key, tensor in model.state_dict().items():
        assert torch.equal(raw.state_dict()[key], tensor)
        assert torch.equal(both.state_dict()[key], tensor)
    assert not caplog.records

    def broken(state: dict[str, Tensor]) -> None:
        reprefix(state, keep=True)
        del state["ema.blocks.1.mlp.fc1.bias"]

    ThermalGen.from_pretrained(rewrite(folder, tmp_path / "broken", broken))
    assert "'ema.' is not complete; taking 'model.'" in caplog.text


def test_lightning_checkpoint(folder: Path, model: ThermalGen, tmp_path: Path) -> None:
    state = load_file(folder / "model.safetensors")
    reprefix(state, 2.0, keep=True)
    path = tmp_path / "last.ckpt"
    torch.save({"epoch": 3, "state_dict": state | {"metric.count": torch.tensor(4)}}, path)
    with pytest.raises(ValueError, match=r" 48 .* 2 .*config\.json"):
        ThermalGen.from_pretrained(path)
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    read = ThermalGen.from_pretrained(path)
    assert all(torch.equal(read.state_dict()[k], v) for k, v in model.state_dict().items())
    torch.save({"state_dict": state, "hyper": Path("x")}, path)
    with pytest.raises(ValueError, match="can run code"):
        ThermalGen.from_pretrained(path)
    with pytest.raises(FileNotFoundError, match=r"no file .*other\.ckpt"):
        ThermalGen.from_pretrained(tmp_path / "other.ckpt")


@pytest.mark.parametrize(("injection", "arch"), [("cross", "B"), ("concat", "L")])
def test_settings_without_config_follow_from_the_tensors(injection: str, arch: str) -> None:
    expected = ThermalGenConfig(arch=arch, injection=injection)
    with torch.device("meta"):
        shapes = {f"ema.{k}": tuple(v.shape) for k, v in SiT(expected.denoiser).state_dict().items()}
    assert ThermalGenConfig.from_shapes(shapes, Path("x.ckpt")) == expected
    with pytest.raises(ValueError, match="no ThermalGen checkpoint"):
        ThermalGenConfig.from_shapes({"net.weight": (1,)}, Path("x.ckpt"))


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("ema.blocks.1.attn.qkv.bias", r"'ema\.blocks\.1\.attn\.qkv\.bias' is missing.*one of the prefixes"),
        ("RGB_vae.encoder.conv_in.weight", r"'RGB_vae\.encoder\.conv_in\.weight' is missing"),
        ("thermal_vae.post_quant_conv.bias", r"'thermal_vae\.post_quant_conv\.bias' is missing"),
    ],
)
def test_missing_tensor_is_named(folder: Path, tmp_path: Path, key: str, message: str) -> None:
    broken = rewrite(folder, tmp_path / "broken", lambda state: state.pop(key))
    with pytest.raises(ValueError, match=message):
        ThermalGen.from_pretrained(broken)


def test_other_damage_is_named(folder: Path, tmp_path: Path) -> None:
    extra = {"ema.blocks.0.attn.q_norm.weight": torch.ones(2)}
    with pytest.raises(ValueError, match=r"'ema\.blocks\.0\.attn\.q_norm\.weight'"):
        ThermalGen.from_pretrained(rewrite(folder, tmp_path / "extra", lambda s: s.update(extra)))
    short = {"ema.y_embedder.embedding_table.weight": torch.ones(1000, 48)}
    with pytest.raises(ValueError, match=r"embedding_table.*\(1000, 48\).*\(1001, 48\)"):
        ThermalGen.from_pretrained(rewrite(folder, tmp_path / "short", lambda s: s.update(short)))
    nan = {"thermal_vae.decoder.conv_out.bias": torch.full((1,), float("nan"))}
    with pytest.raises(ValueError, match=r"thermal_vae\.decoder\.conv_out\.bias.*NaN"):
        ThermalGen.from_pretrained(rewrite(folder, tmp_path / "nan", lambda s: s.update(nan)))
    cut = rewrite(folder, tmp_path / "cut", lambda s: None) / "model.safetensors"
    cut.write_bytes(cut.read_bytes()[:1000])
    with pytest.raises(ValueError, match="truncated"):
        ThermalGen.from_pretrained(cut.parent)


@pytest.mark.parametrize(
    ("where", "change", "message"),
    [
        ("transport_config", {"path_type": "GVP"}, "path_type = 'GVP' is not implemented; expected 'Linear'"),
        ("transport_config", {"prediction": "noise"}, "prediction = 'noise' is not implemented"),
        ("transport_config", {"sigma": 1}, "unknown option sigma = 1"),
        ("injection_args", {"injection_position": "kv"}, "injection_position = 'kv' is not implemented"),
        ("injection_args", {"injection_method": "add"}, "injection_method = 'add' is not implemented"),
        ("injection_args", {"self_attn": False}, "self_attn = False is not implemented"),
        ("injection_args", {"first_cross": True}, "first_cross = True is not implemented"),
        ("vae_config", {"tiling": 3}, "unknown option 'tiling'"),
        ("", {"arch": "XXL"}, "arch = 'XXL' is unknown"),
        ("", {"vae_model": "vqvae"}, "vae_model = 'vqvae' is not implemented"),
        ("", {"RGB_normalizer": ...}, "field 'RGB_normalizer' is missing"),
    ],
)
def test_bad_config_is_named(folder: Path, tmp_path: Path, where: str, change: dict, message: str) -> None:
    content = json.loads((folder / "config.json").read_text())
    settings_ = content["model_config"]
    part = settings_[where] if where else settings_
    part.update(change)
    for name in [k for k, v in part.items() if v is ...]:
        del part[name]
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        ThermalGenConfig.from_json(tmp_path / "config.json")


def test_config_round_trip_and_options_without_effect(golden: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = ThermalGenConfig.from_json(golden / "thermalgen_hub_tiny" / "config.json")
    assert not caplog.records
    for own in (config, ThermalGenConfig(), ThermalGenConfig(arch="L", injection="concat")):
        assert ThermalGenConfig.from_dict(official_config(own)["model_config"]) == own
    content = official_config(config)["model_config"] | {"learning_rate": 3}
    content["injection_args"] |= {"first_cross": False, "rgb_dropout_prob": None, "bn_momentum": None}
    content["vae_config"] |= {"_class_name": "AutoencoderKL"}
    assert ThermalGenConfig.from_dict(content) == config
    assert "learning_rate = 3 is not known" in caplog.text


def test_concat_checkpoint_runs(tmp_path: Path, rgb: Tensor) -> None:
    model = ThermalGen.from_pretrained(write_tiny_thermalgen(tmp_path, injection="concat", prefix="model."))
    assert model.generate(rgb, frames=FRAMES, size=32, label=3, cfg_scale=2.0).isfinite().all()


def test_hub_without_network_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError) as caught:
        ThermalGen.from_pretrained("xjh19972/ThermalGen-XL-2")
    for part in ("xjh19972/ThermalGen-XL-2", "model card", "hf download", "By hand"):
        assert part in str(caught.value)


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rgb": torch.zeros(3, 3, 8, 8, dtype=torch.uint8)}, "uint8 .*expected float"),
        ({"rgb": torch.zeros(3, 1, 8, 8)}, r"\(3, 1, 8, 8\).*\(B, 3, H, W\)"),
        ({"rgb": torch.full((3, 3, 8, 8), 200.0)}, r"\[200, 200\]; expected \[0, 1\].*255"),
        ({"rgb": torch.full((3, 3, 8, 8), float("nan"))}, "nan.*expected"),
        ({"size": 40}, "size = 40.*multiple of 16"),
        ({"size": 0}, "size = 0.*multiple of 16"),
        ({"steps": 0}, "steps = 0"),
        ({"method": "rk5"}, "'rk5' is unknown; expected one of"),
        ({"label": 1001}, "label 1001 is outside 0 to 1000"),
        ({"label": -1}, "label -1 is outside"),
        ({"label": torch.tensor([1, 2])}, r"expected torch\.int64 \(3,\)"),
        ({"cfg_scale": 0.5, "label": 3}, r"cfg_scale = 0\.5"),
        ({"cfg_scale": 4.0}, r"cfg_scale = 4\.0 with label 1000"),
        ({"noise_mode": "batch"}, "noise mode 'batch'"),
        ({"frames": FRAMES[:2]}, "names 2 pictures, but rgb holds 3"),
        ({"frames": None}, "exactly one source of noise"),
        ({"noise": torch.zeros(3, 4, 4, 4)}, "exactly one source of noise"),
        ({"frames": None, "noise": torch.zeros(3, 4, 8, 8)}, r"expected float \(3, 4, 4, 4\)"),
        ({"frames": None, "noise": torch.full((3, 4, 4, 4), torch.inf)}, "noise is .*finite"),
    ],
)
def test_bad_input_is_named(model: ThermalGen, rgb: Tensor, change: dict, message: str) -> None:
    options = {"rgb": rgb, "frames": FRAMES, "size": 32} | change
    with pytest.raises(ValueError, match=message):
        model.generate(options.pop("rgb"), **options)


def test_unknown_fixed_method_is_named() -> None:
    with pytest.raises(ValueError, match="'dopri5'"):
        evaluations("dopri5", 3)
    assert set(TABLEAUS) < set(METHODS)
    with pytest.raises(ValueError, match="must be a multiple of 4"):
        SiT(SiTConfig(46, 1, 2))
