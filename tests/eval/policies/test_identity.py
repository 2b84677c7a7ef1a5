"""Episodes of two versions of the scripted expert are never one policy's."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

import lerobot_env_multismolvla
from multismolvla_eval.policies.baselines import EXPERT_DESCRIPTION, BuiltinPolicy, ExpertPolicy
from multismolvla_eval.policies.checkpoints import EXPERT, _expert_hash, builtin_identity, policy_hash

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


def test_what_built_in_policies_tell_is_how_they_were_asked_for():
    libero = SimpleNamespace(config=SimpleNamespace(type="multismolvla_libero"))
    for path, policy in ((EXPERT, ExpertPolicy(libero)), ("builtin:zero", BuiltinPolicy("zero", 7))):
        facts = policy.facts()
        assert (facts.path, facts.checkpoint, facts.reads) == (path, builtin_identity(path), [])
        assert facts.privileged == (path == EXPERT)


def test_the_description_says_what_the_expert_may_do_that_no_policy_may():
    for word in ("privileged", "simulator's state", "tries variants", "retries", "upper bound", "no policy"):
        assert word in EXPERT_DESCRIPTION
