"""Episodes of two versions of the scripted expert are never one policy's."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path
from types import SimpleNamespace

import draccus
import pytest
from report_readers import summary_of
from synthetic import manifest_of

import lerobot_env_multismolvla
from multismolvla_eval.analysis.table import collect
from multismolvla_eval.config import EvalConfig
from multismolvla_eval.policies.baselines import BuiltinPolicy, ExpertPolicy
from multismolvla_eval.policies.checkpoints import policy_hash
from multismolvla_eval.policies.identity import EXPERT, EXPERT_DESCRIPTION, _expert_hash, builtin_identity
from multismolvla_eval.records.store import ResultsError

PACKAGE = Path(lerobot_env_multismolvla.__file__).parent


def test_the_experts_identity_holds_the_hash_of_its_code_wherever_it_is_asked():
    identity = builtin_identity(EXPERT)
    assert re.fullmatch(r"builtin:expert@[0-9a-f]{12}", identity)
    assert identity == f"{EXPERT}@{_expert_hash(PACKAGE)}" == policy_hash(EXPERT)
    assert builtin_identity("builtin:zero") == "builtin:zero"


@pytest.mark.parametrize(
    ("file", "other"),
    [
        ("libero_expert/skills.py", True),
        ("libero_expert/a_new_skill.py", True),
        ("mini/expert.py", True),
        ("libero_expert/measure.py", False),
        ("mini/suite.py", False),  # the manifest has its version
    ],
)
def test_the_identity_changes_with_what_acts_and_with_nothing_else(tmp_path, file, other):
    for name in ("libero_expert", "mini"):
        shutil.copytree(
            PACKAGE / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "assets")
        )
    before = _expert_hash(tmp_path)
    assert before == _expert_hash(PACKAGE), "the place does not matter"
    with open(tmp_path / file, "a") as handle:
        handle.write("\n# changed\n")
    _expert_hash.cache_clear()
    assert (_expert_hash(tmp_path) != before) == other


def test_rows_of_another_version_are_refused_by_name():
    row = {"policy": "expert", "checkpoint": f"{EXPERT}@000000000000"}
    with pytest.raises(ResultsError, match="builtin:expert@000000000000, which the manifest does not know"):
        collect([row], {"expert": {"checkpoint": builtin_identity(EXPERT)}})


def test_the_description_says_what_the_expert_may_do_that_no_policy_may():
    for word in ("privileged", "simulator's state", "tries variants", "retries", "upper bound", "no policy"):
        assert word in EXPERT_DESCRIPTION


@pytest.mark.parametrize("older", [False, True])
def test_the_command_of_a_cell_names_built_in_policies_as_they_were_asked_for(tmp_path, older):
    libero = SimpleNamespace(config=SimpleNamespace(type="multismolvla_libero"))
    built_in = {"expert": ExpertPolicy(libero), "still": BuiltinPolicy("zero", 7)}
    manifest = manifest_of(("toy",), [], (*built_in, "vanilla"))
    for name, policy in built_in.items():
        facts = {**policy.describe(), "checkpoint": policy.checkpoint}
        assert facts["path"] == {"expert": EXPERT, "still": "builtin:zero"}[name]
        manifest["policies"][name] = {k: v for k, v in facts.items() if not (older and k == "path")}
    summary = summary_of(
        tmp_path,
        texts=["C2:rgb=zero"],
        clean=(1, 0, 1),
        names=(*built_in, "vanilla"),
        policies=manifest["policies"],
    )
    for cell in summary["cells"]:
        config = draccus.parse(EvalConfig, args=shlex.split(cell["command"])[1:])
        config.check()
        assert config.policy_paths() == {
            "expert": EXPERT, "still": "builtin:zero", "vanilla": "outputs/vanilla",
        }  # fmt: skip
