"""Tiny policies for the tests of this folder."""

from policy_fixtures import hub, make_config, make_policy, tiny_dataset  # noqa: F401
