"""Networks that a policy estimates with may lie elsewhere on this machine, or be missing."""

from __future__ import annotations

import shutil
from dataclasses import asdict

import pytest
from tiny_policies import save
from tiny_thermalgen import write_tiny_thermalgen

from multismolvla.estimators import load_estimator
from multismolvla_eval.offline import attack_check, feature_shift, sensor_use_check

QUICK = ["--frames=2", "--batch_size=2", "--strict=false"]
SHORT = ["--steps=1", "--radii=[8]"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "more"),
    [
        (sensor_use_check, ["--modality_frames=2"]),
        (attack_check, [*SHORT, "--fewer_steps=[1]", "--against=[policy]", "--method=pgd"]),
        (feature_shift, SHORT),
    ],
)
def test_the_refusal_of_a_missing_network_names_what_the_check_itself_takes(
    program, more, make_policy, tiny_dataset, tmp_path, capsys
):
    network = write_tiny_thermalgen(tmp_path / "thermalgen")
    recipe = asdict(load_estimator("thermal", str(network), steps=1, size=32).recipe)
    policy = make_policy(
        provenance={"thermal": "derived"}, estimators={"thermal": recipe}, stage="robust", health="off",
        estimator_sources={"thermal": str(network)},
    )  # fmt: skip
    folder = save(policy, tmp_path / "policy")
    moved = shutil.move(network, tmp_path / "elsewhere")
    given = [f"--policies=[p={folder}]", f"--dataset={tiny_dataset}", f"--output={tmp_path}", *QUICK, *more]
    assert program.main(given) == 2
    remedies = capsys.readouterr().err.rpartition("checks on recorded frames: ")[2]
    for remedy in (f"--estimator_sources={{thermal: {moved}}}", "--missing_estimator=absent"):
        assert remedy.partition("=")[0] in remedies
        assert program.main([*given, remedy]) == 0, remedy
