"""Names of soft faults and of attacks, and what training may meet of them.

Apart from the functions, so that a report can read conditions without importing torch.
"""

from __future__ import annotations

#: Raised whenever a definition or a parameter changes: figures of different versions are not comparable.
CORRUPTION_VERSION = "3"
SEVERITIES: tuple[int, ...] = (1, 2, 3, 4, 5)
#: Hard faults that show the episode's first frame from the second one on.
FREEZES: tuple[str, ...] = ("freeze", "noisy_freeze")
#: Hard faults that class ids cannot have, and why.
NOT_FOR_IDS = {
    "grey": "Class ids have no mid-grey.",
    "noisy_freeze": "Class ids have no sensor noise.",
}

#: Attacks on a policy through its RGB (:mod:`multismolvla.corruption.adversarial`): against its actions,
#: against its visual tokens, and the control, which has no gradient.
GRADIENT_ATTACKS: tuple[str, ...] = ("policy", "feature")
ATTACK_TYPES: tuple[str, ...] = (*GRADIENT_ATTACKS, "random_sign")
#: The protocol's radii, in grey levels of 255.
ATTACK_RADII: tuple[int, ...] = (1, 2, 4, 8)

#: ImageNet-C's fifteen.
COMMON_TYPES: tuple[str, ...] = (
    "gaussian_noise", "shot_noise", "impulse_noise",
    "defocus_blur", "glass_blur", "motion_blur", "zoom_blur",
    "snow", "frost", "fog", "brightness",
    "contrast", "elastic_transform", "pixelate", "jpeg_compression",
)  # fmt: skip
#: The four that ImageNet-C holds out.
HELD_OUT_TYPES: tuple[str, ...] = ("speckle_noise", "gaussian_blur", "spatter", "saturate")
IMAGENET_C_TYPES: tuple[str, ...] = (*COMMON_TYPES, *HELD_OUT_TYPES)
BUILTIN_TYPES: tuple[str, ...] = (
    "builtin_noise", "builtin_blur", "builtin_brightness",
    "builtin_occlusion", "builtin_fade", "builtin_dead_pixels",
)  # fmt: skip
#: What rooms do to a camera; training never meets them.
ROOM_TYPES: tuple[str, ...] = ("covered_lens", "half_covered", "glare", "smoke")
SOFT_TYPES: dict[str, tuple[str, ...]] = {
    "rgb": (*IMAGENET_C_TYPES, *BUILTIN_TYPES, *ROOM_TYPES),
    "depth": ("noise", "holes", "quantisation", "flying_pixels", "scale_drift", "occlusion", "dead_pixels"),
    "seg": ("boundary", "label_swap", "instance_removed", "occlusion", "dead_pixels"),
    "thermal": ("fixed_pattern", "low_contrast", "low_resolution", "occlusion", "fade", "dead_pixels"),
}
#: Types with one realisation per episode; the others draw anew for every frame.
STATIC_TYPES: frozenset[str] = frozenset(
    (
        # what sits on the lens, in front of it, or is the lens
        *("frost", "fog", "spatter", "glass_blur", "elastic_transform", "half_covered"),
        # a block stays where it is
        *("builtin_occlusion", "builtin_dead_pixels", "occlusion", "dead_pixels"),
        "scale_drift",
        "fixed_pattern",
        "low_contrast",
        # a segmenter errs about this object, not about this frame
        *SOFT_TYPES["seg"],
    )
)
#: Types that training may use. Everything else is for evaluation only, for ever.
TRAINING_TYPES: dict[str, tuple[str, ...]] = {
    "rgb": ("builtin_noise", "builtin_blur", "builtin_brightness", "builtin_occlusion", "builtin_fade"),
    "depth": ("holes", "occlusion"),
    "seg": ("label_swap", "occlusion"),
    "thermal": ("occlusion", "fade"),
}
#: Of ImageNet-C, what training meets under another definition: it may not count as unseen.
SEEN_KINDS: dict[str, str] = {
    "gaussian_noise": "builtin_noise",
    "gaussian_blur": "builtin_blur",
    "brightness": "builtin_brightness",
}


def seen_in_training(modality: str, type: str) -> bool:
    """Whether training may have met this type of fault of this modality, if only under another definition.

    Dropout counts as seen; constant and frozen pictures, temporal and cross-modal faults never are.
    """
    return type == "drop" or SEEN_KINDS.get(type, type) in TRAINING_TYPES[modality]
