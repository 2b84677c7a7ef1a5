r"""``multismolvla-annotate``: a LeRobotDataset v3 in, one with the modalities it lacks and cached 4M ids out.

    multismolvla-annotate --dataset=PATH --output=PATH                          # everything
    multismolvla-annotate --dataset=PATH --output=PATH --dry-run                # what it would do and need
    multismolvla-annotate --dataset=PATH --output=PATH --keep_pictures=false    # ids only: 1.3 kB per picture
    multismolvla-annotate --dataset=PATH --output=PATH --depth_scale_m="{wrist: 0.0001}"
    accelerate launch --multi_gpu --num_processes=8 --module multismolvla_data.annotate --dataset=PATH

What is recorded stays: a depth camera's stream is read, checked and tokenized, never estimated. What a view
lacks is estimated from its RGB and marked ``derived``: it is lost with its RGB.

**Ids and pictures agree.** Videos are copied byte for byte. Ids are made of pictures as a reader of the new
data set decodes them; derived pictures are stored losslessly (depth uint16 millimetres, segmentation and
thermal 8 bit). At the end a sample is decoded through LeRobot, tokenized again and compared. Ids are int16
features with their recipe; a policy with another recipe refuses them. -1 = this token is absent.

**Recorded depth** is in millimetres, or in the unit that ``depth_scale_m`` gives; then it is stored anew.
What is 0 or outside ``depth_range_m`` counts as unmeasured. All streams of a view are taken to show the same
field of view: LeRobot's RealSense driver does not align them, so another aspect ratio than RGB's is refused.

**Interruptions**: finished episodes are kept in ``.NAME.unfinished`` beside the output; the same command
continues after Ctrl-C, kill -9 or a full disk. Memory holds the networks, two batches of pictures and one
episode's encoded pictures; joining holds a data file (100 MB) a few times.

**Several processes or machines** take every n-th episode and share that folder; rank 0 waits for the others
and joins all. ``--multi_gpu`` is needed on a machine without GPUs, too: else `accelerate launch` starts one
process. Without accelerate, give each ``--rank`` and ``--world_size``.
"""

from __future__ import annotations

import sys

from multismolvla.system.command import entry_point, parse_options, show_progress
from multismolvla_data.annotate.config import AnnotateConfig


@entry_point("multismolvla-annotate", loads="lerobot")
def main() -> int:
    """Entry point of ``multismolvla-annotate``; exit code 0 done, 1 a named error, 130 interrupted."""
    show_progress("multismolvla_data", "multismolvla")
    cfg = parse_options(AnnotateConfig)
    from multismolvla_data.annotate.estimate import plan_text
    from multismolvla_data.annotate.job import annotate
    from multismolvla_data.annotate.setup import AnnotationSetup

    if cfg.dry_run:
        sys.stdout.write(plan_text(AnnotationSetup.of(cfg)))
    else:
        annotate(cfg)
    return 0


if __name__ == "__main__":
    sys.exit(main())
