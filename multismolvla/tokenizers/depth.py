"""From metric depth to what the official depth tokenizer was trained on.

4M's labels are predictions of Omnidata's depth network as 16-bit pictures / 65535, i.e. depth (larger =
farther) in [0, 1] up to an unknown scale and shift, dense, and standardised per picture with the extremes
left out of the statistics. Metric depth comes there in three steps, all in float32:

1. `fill_invalid`: holes get the value of the nearest valid pixel. The training data had none, and the
   statistics tolerate at most 10 % of outliers at either end.
2. `scale_to_unit`: valid minimum -> 0, maximum -> 1. Scale and shift cancel in step 3 but for its epsilon of
   1e-6 on the *variance*, which suits pictures in [0, 1]: in metres it would damp a flat table seen from
   above (2 cm of relief), in millimetres not. A range below 1 mm, the resolution of stored depth, is taken as
   1 mm, so that a flat map becomes zeros and not amplified rounding noise.
3. `standardise`: the reference's truncated standardisation.

Disparity (inverse depth, as Depth-Anything gives it) and z-buffers are no affine maps of depth, and nothing
here can tell them from it: the dataset tools and the renderer convert them at the source.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: Smallest range of depth in metres that is spread to [0, 1].
MIN_RANGE_METRES = 1e-3

_EPS = 1e-6


def prepare_depth(depth: Tensor, valid: Tensor) -> Tensor:
    """Metric depth to the depth tokenizer's input.

    Args:
        depth: floating (B, 1, H, W), metres; values where not ``valid`` may be anything, NaN included.
        valid: bool (B, 1, H, W), True = usable.

    Returns:
        float32 (B, 1, H, W), always finite; zeros for a picture without any valid pixel.
    """
    return standardise(scale_to_unit(fill_invalid(depth, valid)))


def fill_invalid(depth: Tensor, valid: Tensor) -> Tensor:
    """Give each invalid pixel the value of the nearest valid one (Euclidean); zeros where a picture has none.

    Args:
        depth: floating (B, 1, H, W).
        valid: bool (B, 1, H, W).

    Returns:
        float32 (B, 1, H, W).
    """
    # Imported here: the package itself loads with torch alone, and dense depth never needs it.
    from scipy.ndimage import distance_transform_edt

    filled = torch.where(valid, depth, torch.zeros_like(depth)).float()
    counts = valid.flatten(1).sum(1)
    for i in ((counts > 0) & (counts < valid[0].numel())).nonzero().flatten().tolist():
        holes = ~valid[i, 0].cpu().numpy()
        rows, columns = distance_transform_edt(holes, return_distances=False, return_indices=True)
        row, column = (torch.from_numpy(index).to(depth.device).long() for index in (rows, columns))
        filled[i, 0] = filled[i, 0][row, column]
    return filled


def scale_to_unit(depth: Tensor) -> Tensor:
    """Bring each picture's smallest value to 0 and its largest to 1.

    Args:
        depth: float32 (B, 1, H, W), metres, dense.

    Returns:
        float32 (B, 1, H, W) in [0, 1]; narrower where the range is below 1 mm.
    """
    low = depth.amin((1, 2, 3), keepdim=True)
    span = depth.amax((1, 2, 3), keepdim=True) - low
    return (depth - low) / span.clamp(min=MIN_RANGE_METRES)


def standardise(depth: Tensor) -> Tensor:
    """Truncated standardisation per picture: mean and variance without the lowest and the highest tenth.

    All pixels are standardised, the trimmed ones too; nothing is clipped.

    Args:
        depth: floating (B, 1, H, W), relative depth in about [0, 1].

    Returns:
        float32 (B, 1, H, W).

    Source: apple/ml-4m (the depth transform of its tokenizer training).
    """
    values, _ = depth.float().flatten(1).sort(dim=1)
    n = values.shape[1]
    kept = values[:, n // 10 : 9 * n // 10]
    mean = kept.mean(dim=1).view(-1, 1, 1, 1)
    variance = kept.var(dim=1).view(-1, 1, 1, 1)  # unbiased
    return (depth.float() - mean) / (variance + _EPS).sqrt()
