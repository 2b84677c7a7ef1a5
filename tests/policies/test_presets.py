"""The presets' options are options of policy and tools, and together make a valid configuration."""

from __future__ import annotations

import shlex
from pathlib import Path

import draccus
import pytest

from lerobot_env_multismolvla import MultiSmolVLALiberoConfig
from lerobot_policy_multismolvla.configuration_multismolvla import MultiSmolVLAConfig
from lerobot_policy_multismolvla.mini.pretrain import PretrainConfig
from multismolvla.modalities import MODALITIES
from multismolvla.tokenizers.label_sets import LIBERO
from multismolvla_data.record.config import RecordConfig
from multismolvla_eval.evaluate import parse
from multismolvla_run import dry_run, presets

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


@pytest.mark.parametrize("name", ["libero_b", "libero_l", "libero_xl", "so101"])
@pytest.mark.parametrize("stage", ["base", "connector", "robust"])
def test_options_make_a_valid_configuration(name, stage) -> None:
    preset = presets.load_preset(name, CONFIGS)
    options, adapters = dry_run.policy_options(preset, preset.stage(stage))
    options.pop("type")
    # {steps} and {stage:...} stand where numbers and folders will
    values = {k: "1000" if v == "{steps}" else v for k, v in options.items()}
    config = draccus.decode(MultiSmolVLAConfig, values)
    assert bool(adapters) == (stage == "robust")
    if stage == "base":
        assert not config.uses_fourm
        return
    assert config.tower_modalities == tuple(MODALITIES)
    assert len(config.views) == 2
    assert config.tokenizers == "official"
    assert len(config.token_keys()) == 6
    for _, modality in config.token_keys().values():
        assert modality in config.domains


@pytest.mark.parametrize("name", ["mini_baselines", "libero_b_baselines"])
def test_baselines_see_as_many_samples_as_both_stages(name) -> None:
    preset = presets.load_preset(name, CONFIGS)

    def samples(*stages: str) -> int:
        return sum(preset.stage(s).steps * preset.stage(s).args["batch_size"] for s in stages)

    for stage in ("base_continued", "base_dropout"):
        assert samples(stage) == samples("connector", "robust")
        options, _ = dry_run.policy_options(preset, preset.stage(stage))
        assert options["vision_tower"] == "siglip"
        assert options["dropout_mode"] == ("none" if stage == "base_continued" else "linear")


@pytest.mark.parametrize("stage", ["base", "connector", "robust", "base_continued", "base_dropout"])
def test_options_of_libero_tiny_make_a_valid_configuration(stage) -> None:
    preset = presets.load_preset("libero_tiny", CONFIGS)
    options, _ = dry_run.policy_options(preset, preset.stage(stage))
    options.pop("type")
    values = {k: "1000" if v == "{steps}" else v for k, v in options.items()}
    config = draccus.decode(MultiSmolVLAConfig, values)
    assert list(config.views) == ["image", "image2"]
    assert tuple(config.resize_imgs_with_padding) == (128, 128)
    if config.uses_fourm:
        assert config.tower_modalities == tuple(MODALITIES)
        assert config.num_labels == len(LIBERO.ids)


@pytest.mark.parametrize("name", ["libero_tiny", "libero_tiny_spatial"])
def test_all_of_libero_tiny_is_about_pictures_of_one_size(name) -> None:
    """Recorder, pre-training, tokens and evaluation: options that they have, and the same pictures."""
    preset = presets.load_preset(name, CONFIGS)
    (command,) = preset.make_dataset
    program, *words = shlex.split(command.replace("{dataset}", "there"))
    recorded = draccus.parse(RecordConfig, args=words)
    evaluated = parse([f"--config_path={CONFIGS / f'eval/{name}.yaml'}"])
    environment = MultiSmolVLALiberoConfig(task=evaluated.env.task, **evaluated.env.options)
    args = preset.stage("pretrain").args
    pretrained = draccus.decode(PretrainConfig, {k: v for k, v in args.items() if "{" not in str(v)})
    sizes = {recorded.size, environment.observation_height, environment.observation_width}
    sizes |= {pretrained.image_size, preset.stage("tokens").args["image_size"]}
    assert (program, sizes) == ("multismolvla-record", {128})
    assert recorded.render_quality == environment.render_quality
    assert recorded.settle_steps == environment.num_steps_wait
    assert recorded.suite == environment.task
    assert preset.dataset in " ".join(evaluated.policies)  # the replay's
