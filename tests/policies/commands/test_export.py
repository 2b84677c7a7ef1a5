"""multismolvla-export: slim encoders keep their hash, merged checkpoints their actions, and the hub's absence
is told.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import lora
import pytest
import torch
from lerobot.configs.policies import PreTrainedConfig
from lerobot.policies.factory import make_pre_post_processors
from safetensors.torch import load_file
from tiny_policy import chunk

from lerobot_policy_multismolvla import export as work
from lerobot_policy_multismolvla.checkpoints import tensors_hash
from lerobot_policy_multismolvla.configuration_multismolvla import MultiSmolVLAConfig
from lerobot_policy_multismolvla.model_card import SlimEncoder
from lerobot_policy_multismolvla.modeling_multismolvla import MultiSmolVLAPolicy
from lerobot_policy_multismolvla.processor_multismolvla import make_multismolvla_pre_post_processors
from multismolvla.fourm import MINI_DOMAINS, FourMConfig, FourMEncoder
from multismolvla_run.export import main

PROCESSORS = ("policy_preprocessor", "policy_postprocessor")
STATS = {
    "action": {"mean": torch.full((7,), 0.5), "std": torch.full((7,), 2.0), "min": torch.full((7,), -1.0),
               "max": torch.full((7,), 1.0)},
    "observation.state": {"mean": torch.zeros(8), "std": torch.ones(8)},
}  # fmt: skip
NAMES = ["rgb@224", "tok_depth@224"]


@pytest.fixture
def whole(tmp_path) -> Path:
    """A checkpoint with more modalities than wanted, and a licence file beside it."""
    config = FourMConfig(
        16, 2, 2, (*NAMES, "tok_semseg@224"), domains_out=("tok_depth@224",), decoder_depth=2
    )
    encoder = FourMEncoder(config, config.domains_in, torch.Generator().manual_seed(0))
    encoder.save_pretrained(tmp_path / "whole")
    (tmp_path / "whole" / "LICENSE.md").write_text("all conditions")
    return tmp_path / "whole"


@pytest.fixture
def stage_one(make_policy, tmp_path) -> Path:
    make_policy(stage="connector").save_pretrained(tmp_path / "one")
    return tmp_path / "one"


# ---------------------------------------------------------------------------------------------------- encoder


def test_a_slim_encoder_is_the_same_encoder(whole, tmp_path) -> None:
    out = tmp_path / "slim"
    options = [f"--encoder={whole}", "--modalities=[rgb@224, tok_depth@224]", f"--output={out}"]
    assert main(["--slim-encoder", *options]) == 0
    original = FourMEncoder.from_pretrained(whole, NAMES)
    slim = FourMEncoder.from_pretrained(out, NAMES)
    assert tensors_hash(slim) == tensors_hash(original)
    pixels = {"rgb@224": torch.rand(1, 3, 224, 224)}
    assert torch.equal(slim(pixels)["rgb@224"], original(pixels)["rgb@224"])
    assert not any("semseg" in key for key in load_file(out / "model.safetensors"))
    assert (out / "model.safetensors").stat().st_size < (whole / "model.safetensors").stat().st_size
    assert json.loads((out / "config.json").read_text())["domains_in"] == NAMES


def test_a_slim_encoder_tells_where_it_comes_from(whole, tmp_path) -> None:
    made = work.slim_encoder(str(whole), NAMES, tmp_path / "slim")
    written = json.loads((tmp_path / "slim" / "source.json").read_text())
    assert replace(made, modalities=NAMES) == SlimEncoder(**written)
    assert made.encoder_hash == tensors_hash(FourMEncoder.from_pretrained(whole, NAMES))
    assert (made.source, made.revision) == (str(whole), None)
    assert (tmp_path / "slim" / "LICENSE.md").read_text() == "all conditions"
    for name in ("LICENCE-OF-THE-WEIGHTS.txt", "README.md"):
        assert str(whole) in (tmp_path / "slim" / name).read_text()


def test_the_hub_cache_gives_revision_and_licence(whole, tmp_path, monkeypatch) -> None:
    """As huggingface_hub lays it out: the commit is the snapshot's folder."""
    cached = tmp_path / "hub" / "models--EPFL-VILAB--4M-21_B"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("0123abcd" * 5)
    shutil.copytree(whole, cached / "snapshots" / ("0123abcd" * 5))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    made = work.slim_encoder("EPFL-VILAB/4M-21_B", NAMES, tmp_path / "slim")
    assert made.revision == "0123abcd" * 5
    assert "non-commercial" in made.licence
    assert "non-commercial" in (tmp_path / "slim" / "LICENCE-OF-THE-WEIGHTS.txt").read_text()


def test_a_policy_accepts_the_slim_encoder_it_names(make_policy, batch, hub, tmp_path, capsys) -> None:
    """The policy's own encoder, restricted to what it reads; its actions stay the same bit for bit."""
    policy = make_policy(domains={m: MINI_DOMAINS[m] for m in ("rgb", "depth")})
    policy.save_pretrained(tmp_path / "policy")
    assert (
        main(["--slim_encoder=true", f"--checkpoint={tmp_path / 'policy'}", f"--output={tmp_path / 'slim'}"])
        == 0
    )
    config = PreTrainedConfig.from_pretrained(tmp_path / "policy")
    config.encoder = str(tmp_path / "slim")
    again = MultiSmolVLAPolicy.from_pretrained(tmp_path / "policy", config=config)
    assert again.config.encoder_hash == policy.config.encoder_hash
    assert torch.equal(chunk(again.eval(), batch), chunk(policy.eval(), batch))


@pytest.mark.parametrize(
    ("thermal", "route", "kept"),
    [
        ("tok_imagebind@224+tok_imagebind_global", "vision", ["tok_imagebind@224", "tok_imagebind_global"]),
        ("soft_thermal@224", "soft", []),  # learned by the policy and saved with it
    ],
)
def test_the_modalities_of_a_policy(thermal, route, kept, tmp_path) -> None:
    domains = {"rgb": "rgb@224", "thermal": thermal}
    config = MultiSmolVLAConfig(tokenizers="official", thermal_route=route, domains=domains, device="cpu")
    assert work.encoder_domains(config) == ["rgb@224", *kept]


def test_a_policy_without_the_tower_has_nothing_to_slim() -> None:
    with pytest.raises(ValueError, match="siglip.*no 4M encoder"):
        work.encoder_domains(MultiSmolVLAConfig(vision_tower="siglip", device="cpu"))


def test_another_encoder_than_the_policys_is_refused(make_policy, hub, tmp_path, capsys) -> None:
    make_policy().save_pretrained(tmp_path / "policy")
    other = FourMEncoder.from_pretrained(hub / "fourm", list(MINI_DOMAINS.values()))
    other.encoder_norm.weight.data.mul_(2)
    other.save_pretrained(tmp_path / "other")
    words = ["--slim-encoder", f"--checkpoint={tmp_path / 'policy'}", f"--encoder={tmp_path / 'other'}"]
    assert main([*words, f"--output={tmp_path / 'slim'}"]) == 1
    assert "the policy was trained with" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["other", "policy"]


# ---------------------------------------------------------------------------------------------------- policy


def test_merged_adapters_act_as_before(stage_one, batch, tmp_path) -> None:
    wrapped = lora.trained(lora.stage_two(stage_one), batch)
    two = lora.saved(wrapped, tmp_path / "two")
    (two / "policy_preprocessor.json").write_text("{}")
    (two / "train_config.json").write_text(json.dumps({"steps": 3, "batch_size": 2}))
    before = chunk(wrapped, batch)
    assert main([f"--checkpoint={two}", f"--output={tmp_path / 'merged'}"]) == 0

    shutil.rmtree(stage_one)  # the export stands alone
    again = MultiSmolVLAPolicy.from_pretrained(tmp_path / "merged").eval()
    assert torch.allclose(chunk(again, batch), before, atol=1e-5)
    assert sorted(p.name for p in (tmp_path / "merged").iterdir()) == [
        "README.md", "config.json", "model.safetensors", "policy_preprocessor.json", "train_config.json",
    ]  # fmt: skip
    old, new = (json.loads((f / "config.json").read_text()) for f in (two, tmp_path / "merged"))
    assert {k for k in old if old[k] != new[k]} == {"use_peft"}
    assert new["use_peft"] is False
    card = (tmp_path / "merged" / "README.md").read_text()
    parts = ["Adapters of stage 2 are merged", "lerobot-rollout", '"steps": 3', "observation.images.image"]
    for part in (*parts, old["encoder_hash"]):
        assert part in card, part


def test_a_moved_base_is_named_with_an_option(stage_one, batch, tmp_path, capsys) -> None:
    wrapped = lora.trained(lora.stage_two(stage_one), batch, steps=1)
    two = lora.saved(wrapped, tmp_path / "two")
    before = chunk(wrapped, batch)
    stage_one.rename(tmp_path / "moved")
    words = [f"--checkpoint={two}", f"--output={tmp_path / 'merged'}"]
    assert main(words) == 1
    assert "--base" in capsys.readouterr().err
    assert not (tmp_path / "merged").exists()
    assert main([*words, f"--base={tmp_path / 'moved'}"]) == 0
    again = MultiSmolVLAPolicy.from_pretrained(tmp_path / "merged").eval()
    assert torch.allclose(chunk(again, batch), before, atol=1e-5)


def test_adapters_on_the_encoder_are_not_lost_silently(stage_one, batch, tmp_path, capsys) -> None:
    wrapped = lora.stage_two(stage_one, target_modules=r"model\.tower\.encoder\..*\.qkv")
    two = lora.saved(lora.trained(wrapped, batch, steps=1), tmp_path / "two")
    before = chunk(wrapped, batch)
    assert main([f"--checkpoint={two}", f"--output={tmp_path / 'merged'}"]) == 1
    assert "adapters on the encoder" in capsys.readouterr().err
    assert not (tmp_path / "merged").exists()
    assert torch.allclose(chunk(work.load_policy(two).eval(), batch), before, atol=1e-5)


def test_a_plain_checkpoint_is_exported_as_it_is(stage_one, tmp_path) -> None:
    work.export_policy(stage_one, tmp_path / "out")
    old, new = (load_file(f / "model.safetensors") for f in (stage_one, tmp_path / "out"))
    assert old.keys() == new.keys()
    assert all(torch.equal(old[k], new[k]) for k in old)
    assert "Adapters of stage 2" not in (tmp_path / "out" / "README.md").read_text()


def test_a_policy_in_bfloat16_is_half_the_file_and_acts_in_it(stage_one, batch, tmp_path) -> None:
    out = tmp_path / "half"
    assert main([f"--checkpoint={stage_one}", "--bf16", f"--output={out}"]) == 0
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (stage_one, out)]
    assert sizes[1] < 0.55 * sizes[0]
    before, after = (MultiSmolVLAPolicy.from_pretrained(folder).eval() for folder in (stage_one, out))
    assert after.config.acting_dtype == "bfloat16"
    plans = [chunk(policy, batch) for policy in (before, after)]
    assert plans[1].dtype == torch.float32
    assert 0 < (plans[0] - plans[1]).abs().max() < 0.1 * plans[0].abs().max()
    prints = [policy.last_look().inputs.fingerprint() for policy in (before, after)]
    assert prints[0] == prints[1], "ids are those of training"
    after.config.acting_dtype = "float32"  # the same weights
    assert not torch.equal(chunk(after, batch), plans[1])


def test_an_older_checkpoint_gets_health_and_guard_and_acts_as_before(make_policy, batch, tmp_path) -> None:
    """As a GPU machine wrote it before there was either."""
    policy, old, new = make_policy(), tmp_path / "old", tmp_path / "new"
    policy.save_pretrained(old)
    for pipeline, name in zip(
        make_multismolvla_pre_post_processors(policy.config, STATS), PROCESSORS, strict=True
    ):
        ours = ("multismolvla_health", "multismolvla_guard")
        pipeline.steps = [s for s in pipeline.steps if getattr(s, "_registry_name", None) not in ours]
        pipeline.save_pretrained(old, config_filename=f"{name}.json")
    file = old / "policy_preprocessor.json"
    file.write_text(file.read_text().replace('"device": "cpu"', '"device": "cuda"'))
    values = json.loads((old / "config.json").read_text())
    del values["action_kind"], values["standstill"]
    (old / "config.json").write_text(json.dumps(values | {"device": "cuda"}))
    before = [path.name for path in old.iterdir()]

    assert main([f"--checkpoint={old}", f"--output={new}", "--action_kind=delta"]) == 0
    assert sorted(path.name for path in old.iterdir()) == sorted(before)
    again = PreTrainedConfig.from_pretrained(new)
    assert again.stopped == [0, 1, 2, 3, 4, 5]
    stored = [json.loads((new / f"{name}.json").read_text())["steps"] for name in PROCESSORS]
    assert "cuda" in str(stored[0])
    assert [step["registry_name"] for step in stored[0]].count("multismolvla_health") == 1
    assert stored[1][-1]["registry_name"] == "multismolvla_guard"
    named = {step["state_file"] for steps in stored for step in steps if "state_file" in step}
    assert named == {path.name for path in new.glob("policy_*.safetensors")}
    cpu = {"device_processor": {"device": "cpu"}}
    pre, post = make_pre_post_processors(again, pretrained_path=str(new), preprocessor_overrides=cpu)
    told = torch.full((1, 7), 0.1)
    assert torch.equal(post(told), told * 2 + 0.5)
    assert post(torch.full((1, 7), 5.0))[0].tolist() == pytest.approx([0.0] * 6 + [0.7])
    # a second time nothing is lacking, and the kind is that of the checkpoint
    assert work.export_policy(new, tmp_path / "newer") == []
    assert PreTrainedConfig.from_pretrained(tmp_path / "newer").standstill == again.standstill


def test_folders_of_this_machine_are_told(stage_one, hub, tmp_path, caplog) -> None:
    work.export_policy(stage_one, tmp_path / "out")
    assert f"{hub / 'vlm'}, {hub / 'fourm'}" in caplog.text
    assert str(hub / "base") not in caplog.text


def test_the_card_names_the_licence_of_every_network() -> None:
    from lerobot_policy_multismolvla.model_card import policy_card

    policy = {
        "views": {"front": {"rgb": "observation.images.front"}},
        "encoder": "EPFL-VILAB/4M-21_L",
        "encoder_hash": "abc",
        "base_checkpoint": "lerobot/smolvla_base",
        "tokenizers": "official",
        "domains": {"depth": "tok_depth@224", "thermal": "tok_imagebind_global"},
    }
    card = policy_card(policy, None, merged=False)
    assert "smolvla_base |" not in card  # its weights are in the checkpoint
    networks = ["EPFL-VILAB/4M-21_L", "4M_tokenizers_depth", "nielsr/imagebind-huge"]
    for part in (*networks, "non-commercial", "Apache-2.0", "| front | rgb |"):
        assert part in card, part


# ---------------------------------------------------------------------------------------------------- command


def test_pushing_offline_keeps_the_export_and_says_how_to_go_on(whole, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    out = tmp_path / "slim"
    words = ["--slim-encoder", f"--encoder={whole}", "--modalities=[rgb@224]", f"--output={out}"]
    assert main([*words, "--push=me/slim"]) == 1
    error = capsys.readouterr().err
    for part in ("Not pushed to me/slim", "HF_HUB_OFFLINE", f"hf upload me/slim {out}"):
        assert part in error, part
    assert FourMEncoder.from_pretrained(out, ["rgb@224"])


def test_pushing_without_a_hub_to_reach_is_told(tmp_path, monkeypatch) -> None:
    import httpx
    from huggingface_hub import HfApi

    def unreachable(*args, **kwargs):
        raise httpx.ConnectError("no route")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(HfApi, "create_repo", unreachable)
    with pytest.raises(ConnectionError, match="me/x.*no route"):
        work.push(tmp_path, "me/x", private=True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "name a policy with --checkpoint"),
        (["--slim-encoder"], "needs --encoder"),
        (["--slim-encoder", "--encoder=x"], "needs --encoder .* and --modalities"),
        (["--checkpoint=x", "--encoder=y"], "belong to --slim-encoder"),
        (["--slim-encoder", "--checkpoint=x", "--base=y"], "--base belongs"),
        (["--slim-encoder", "--checkpoint=x", "--action_kind=delta"], "--action_kind belongs"),
        (["--slim-encoder", "--checkpoint=x", "--bf16"], "--bf16 belongs"),
        (["--checkpoint=x", "--push=nobody"], "expected owner/name"),
        (["--checkpoint=x"], "x has no config.json"),
        (["--slim-encoder", "--encoder=x", "--modalities=[rgb@224]"], "'x' is neither a folder nor a hub id"),
    ],
)
def test_wrong_requests_are_refused(words, message, tmp_path, monkeypatch, capsys) -> None:
    import re

    monkeypatch.chdir(tmp_path)
    assert main(words) == 1
    assert re.search(message, capsys.readouterr().err)
    assert not list(tmp_path.rglob("*.*"))


def test_nothing_is_written_over(whole, tmp_path, capsys) -> None:
    words = ["--slim-encoder", f"--encoder={whole}", "--modalities=[rgb@224]", f"--output={whole}"]
    assert main(words) == 1
    assert "exists" in capsys.readouterr().err


def test_an_unknown_modality_leaves_nothing_behind(whole, tmp_path, capsys) -> None:
    words = [
        "--slim-encoder",
        f"--encoder={whole}",
        "--modalities=[tok_clip@224]",
        f"--output={tmp_path / 'x'}",
    ]
    assert main(words) == 1
    assert "tok_clip@224" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["whole"]


def test_help_answers_without_heavy_imports() -> None:
    code = (
        "import sys; from multismolvla_run.export import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: print('torch' in sys.modules, 'lerobot' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-2:] == ["False", "False"]
    assert "--slim_encoder" in done.stdout
