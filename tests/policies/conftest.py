"""Tiny policies for the tests of this folder."""

from policy_fixtures import batch, hub, make_config, make_policy, tiny_dataset  # noqa: F401
from tiny_annotated import annotated, policy_of, sources  # noqa: F401
