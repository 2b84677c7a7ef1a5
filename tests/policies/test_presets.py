"""The official presets' policy options are options of the policy, and together make a valid configuration."""

from __future__ import annotations

from pathlib import Path

import draccus
import pytest

from lerobot_policy_multismolvla.configuration_multismolvla import MultiSmolVLAConfig
from multismolvla.modalities import MODALITIES
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
