"""LeRobot finds the plugin by the distribution's name, in a fresh process, without being told and without the
simulator.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from lerobot.policies.factory import get_policy_class

SCRIPT = """
import json, sys, time
from lerobot.utils.import_utils import register_third_party_plugins
start = time.perf_counter()
register_third_party_plugins()
took = time.perf_counter() - start
from lerobot.configs.policies import PreTrainedConfig
from lerobot.processor import ProcessorStepRegistry
print(json.dumps({
    "policies": list(PreTrainedConfig.get_known_choices()),
    "steps": ProcessorStepRegistry.list(),
    "modules": sorted(m for m in sys.modules if m.split(".")[0] in ("mujoco", "robosuite", "libero",
        "transformers")),
    "modeling": "lerobot_policy_multismolvla.modeling_multismolvla" in sys.modules,
    "took": took,
}))
"""


@pytest.fixture(scope="module")
def fresh() -> dict:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def test_the_policy_and_its_step_are_known_after_discovery(fresh):
    assert "multismolvla" in fresh["policies"]
    assert "multismolvla_sensors" in fresh["steps"]


def test_discovery_imports_neither_simulator_nor_weights(fresh):
    # an exception here would be swallowed by LeRobot, and the user would read "invalid choice: multismolvla"
    assert not [m for m in fresh["modules"] if m.split(".")[0] in ("mujoco", "robosuite", "libero")]
    assert not fresh["modeling"]


def test_lerobot_resolves_policy_and_processors_by_name():
    from lerobot.policies.factory import _make_processors_from_policy_config  # noqa: PLC2701

    from lerobot_policy_multismolvla.configuration_multismolvla import MultiSmolVLAConfig
    from lerobot_policy_multismolvla.modeling_multismolvla import MultiSmolVLAPolicy

    assert get_policy_class("multismolvla") is MultiSmolVLAPolicy
    assert MultiSmolVLAPolicy.config_class is MultiSmolVLAConfig
    assert MultiSmolVLAPolicy.name == MultiSmolVLAConfig(device="cpu").type == "multismolvla"
    assert callable(_make_processors_from_policy_config)
