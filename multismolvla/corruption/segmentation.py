"""Soft faults of segmentation. Ids are moved, removed or exchanged for others of the set, never mixed."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from multismolvla.corruption.generic import dead_mask, occlusion_mask

BOUNDARY_PX = (1, 2, 3, 5, 8)
PROBABILITY = (0.05, 0.10, 0.20, 0.35, 0.50)
#: Class id that a pixel gets when its object is removed.
BACKGROUND_ID = 0
#: Ids are at most this: results are stored as 8-bit pictures.
LARGEST_ID = 255


def corrupt(image: Tensor, type: str, severity: int, generator: Generator, labels: int | None) -> Tensor:
    """See `.soft.apply_soft`; int64 (C, H, W), ids in [0, 255].

    Without instance ids, a class counts as one instance. Pixel widths are those of the picture, whatever its
    size.

    Raises:
        ValueError: an id is out of range, or ``label_swap`` is not told the label set.
    """
    classes = image[0]
    instances = image[1] if image.shape[0] > 1 else torch.zeros_like(classes)
    for name, ids in (("class", classes), ("instance", instances)):
        if ids.min() < 0 or ids.max() > LARGEST_ID:
            raise ValueError(
                f"Segmentation {name} ids must lie in [0, {LARGEST_ID}], got [{int(ids.min())}, "
                f"{int(ids.max())}]. Map them to the declared label set first."
            )
    key = classes * 256 + instances
    height, width = classes.shape
    level = severity - 1
    if type == "boundary":
        key = _boundary(key, BOUNDARY_PX[level], generator)
    elif type == "label_swap":
        swapped = _chosen(key, PROBABILITY[level], generator)
        target = _other_class(classes, labels, generator)
        key = torch.where(swapped, target[classes] * 256 + instances, key)
    elif type == "instance_removed":
        key = torch.where(_chosen(key, PROBABILITY[level], generator), BACKGROUND_ID, key)
    elif type == "occlusion":
        key = torch.where(occlusion_mask(height, width, severity, generator)[0], BACKGROUND_ID, key)
    else:
        key = torch.where(dead_mask(height, width, severity, generator)[0], BACKGROUND_ID, key)
    result = image.clone()
    result[0] = key // 256
    if image.shape[0] > 1:
        result[1] = key % 256
    return result


def _chosen(key: Tensor, probability: float, generator: Generator) -> Tensor:
    """Pixels of the instances that are hit, bool (H, W); the background never is.

    One number per possible instance is drawn, not one per instance seen: an object that leaves the picture
    for a while does not change the fate of the others, and a higher probability hits a superset.
    """
    table = torch.rand(256 * 256, generator=generator)
    return (table[key] < probability) & (key // 256 != BACKGROUND_ID)


def _other_class(classes: Tensor, labels: int | None, generator: Generator) -> Tensor:
    """For each class id another one of the label set: int64 (256,).

    Of the label set and not of the picture: what comes into view or leaves it must not change what the others
    become. An object becomes background only if there is no other class: that fault is ``instance_removed``.
    """
    largest = int(classes.max())
    if labels is None or not largest < labels <= LARGEST_ID + 1:
        raise ValueError(
            f"label_swap needs the size of the label set, above the largest id of the picture ({largest}) "
            f"and at most {LARGEST_ID + 1}; got labels={labels}."
        )
    first = BACKGROUND_ID + 1 if labels > 2 else BACKGROUND_ID
    ring = first + torch.randperm(labels - first, generator=generator)
    target = torch.arange(256)
    target[ring] = ring.roll(-1)
    return target


def _boundary(key: Tensor, pixels: int, generator: Generator) -> Tensor:
    """Erode or dilate (one coin per episode) all objects by ``pixels``."""
    grow = bool(torch.rand((), generator=generator) < 0.5)
    foreground = key // 256 != BACKGROUND_ID
    x = torch.where(foreground, key, -1).to(torch.float32)[None, None]  # 65535 is exact in float32
    for _ in range(pixels):
        highest = F.max_pool2d(x, 3, 1, 1)
        if grow:
            x = torch.where(x < 0, highest, x)
        else:
            lowest = -F.max_pool2d(-x, 3, 1, 1)
            x = torch.where(highest == lowest, x, torch.tensor(-1.0))
    changed = x[0, 0].to(torch.int64)
    return torch.where(changed >= 0, changed, torch.where(foreground, BACKGROUND_ID, key))
