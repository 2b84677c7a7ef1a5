"""How the announced loss of a picture reaches a policy; if it does not, it is shown a black one, as in C2.

Read in the source of lerobot 0.6.1 (folder ``lerobot/policies``):

- *By a mask*: ``smolvla`` masks the tokens of a picture whose ``<key>_padding_mask`` is false
  (modeling_smolvla.py:364). Our own policy reads these masks of all its streams.
- *By a gap*: ``pi0``, ``pi05`` and ``pi0_fast`` read no mask, but a declared key that is not in the batch
  becomes a masked picture (modeling_pi0.py:996 and 1040, modeling_pi05.py:965 and 1010,
  modeling_pi0_fast.py:977 and 1022). Masked ones come last, which changes nothing: positions count unmasked
  tokens only (modeling_pi0.py:675, modeling_pi05.py:642, modeling_pi0_fast.py:651). A batch without any
  picture is refused (modeling_pi0.py:998), so the loss of all is not announced.
- *Not at all*: ``act``, ``diffusion`` and ``vqbet`` take every declared key out of the batch
  (modeling_act.py:141, modeling_diffusion.py:120, modeling_vqbet.py:138). In ``xvla`` and ``evo1`` a gap
  moves the later cameras into the place of the lost one (modeling_xvla.py:312, modeling_evo1.py:378), which
  is no announcement. Of other types nothing is known.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from multismolvla.modalities import padding_mask_key
from multismolvla_eval.environments import Batch

#: Policies that drop a picture whose padding mask is false.
MASK_READERS = ("multismolvla", "smolvla")
#: Policies that drop a picture whose key is missing, as long as there is another picture.
GAP_READERS = ("pi0", "pi05", "pi0_fast")


def announce(kind: str, pictures: Iterable[str], batch: Batch) -> Batch:
    """The batch without its lost pictures for policies that understand gaps, for all others the same.

    Args:
        kind: type of the policy.
        pictures: keys of the pictures that it declares.
        batch: prepared, of one row; the padding masks in it say what is lost.
    """
    if kind not in GAP_READERS:
        return batch
    there = [key for key in pictures if key in batch]
    lost = [key for key in there if _is_lost(batch.get(padding_mask_key(key)))]
    return batch if len(lost) == len(there) else {k: v for k, v in batch.items() if k not in lost}


def _is_lost(mask: Tensor | None) -> bool:
    return mask is not None and not bool(mask.any())
