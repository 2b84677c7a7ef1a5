"""A policy meets only segmentation ids that it knows; anything else is refused before an episode."""

from types import SimpleNamespace

import pytest

from multismolvla_eval.policies.features import check_labels

LIBERO = tuple(f"class {i}" for i in range(33))


def policy(num_labels: int, **changes) -> SimpleNamespace:
    facts = {
        "num_labels": num_labels,
        "tokenizers": "official",
        "seg_labels": "libero",
        "seg_unknown": "error",
        "input_features": {"observation.images.image_seg": None},
    }
    return SimpleNamespace(**{**facts, **changes})


@pytest.mark.parametrize(
    ("config", "labels"),
    [
        (policy(33), LIBERO),
        (policy(134, seg_labels="coco_panoptic"), LIBERO * 4 + ("a", "b")),
        (policy(40, seg_unknown="void"), LIBERO),
        (policy(40, tokenizers="patch"), LIBERO),
        (policy(8, input_features={"observation.images.image": None}), LIBERO),
        (policy(8), ()),
        (SimpleNamespace(input_features={}), LIBERO),
    ],
)
def test_what_fits_passes(config, labels):
    check_labels("p", config, labels)


@pytest.mark.parametrize(
    "config",
    [policy(134, seg_labels="coco_panoptic"), policy(8, tokenizers="patch"), policy(32, seg_unknown="void")],
)
def test_another_label_set_is_refused_with_the_remedy(config):
    with pytest.raises(ValueError, match=rf" {config.num_labels} .* 33.*seg_labels: coco"):
        check_labels("p", config, LIBERO)
