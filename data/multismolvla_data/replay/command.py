"""``multismolvla-replay``: LIBERO's official demonstrations, rendered anew with all modalities.

    multismolvla-replay --source=libero_object --suite=libero_object --output=outputs/libero_object

The public data have RGB only, at 128 pixels, and no depth in metres. Their files hold the simulator's states
and the actions, so every sensor can be rendered after the fact. What is written is what
``multismolvla-record`` writes; as there, the same command continues after whatever stopped it.
"""

from __future__ import annotations

import sys

from multismolvla.system.command import entry_point, parse_options, show_progress
from multismolvla_data.replay.config import ReplayConfig


@entry_point("multismolvla-replay", loads="lerobot")
def main() -> int:
    """Entry point of ``multismolvla-replay``; exit code 0 done, 1 a named error, 130 interrupted."""
    show_progress("multismolvla_data")
    config = parse_options(ReplayConfig)
    from multismolvla_data.replay.job import replay
    from multismolvla_data.replay.plan import plan_replay, plan_table

    if config.dry_run:
        sys.stdout.write(plan_table(config, plan_replay(config)))
    else:
        replay(config)
    return 0


if __name__ == "__main__":
    sys.exit(main())
