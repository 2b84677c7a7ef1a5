"""``multismolvla-record``: scripted demonstrations with all modalities, as a LeRobotDataset v3.

    multismolvla-record --output=outputs/demo/mini --episodes=50
    multismolvla-record --suite=libero_object --output=outputs/libero_object --episodes=30

Whatever stops it, the same command continues: finished episodes are kept, and the result appears under
``--output`` only when whole.
"""

from __future__ import annotations

import sys

from multismolvla.system.command import entry_point, parse_options, show_progress
from multismolvla_data.record.config import RecordConfig


@entry_point("multismolvla-record", loads="lerobot")
def main() -> int:
    """Entry point of ``multismolvla-record``; exit code 0 done, 1 a named error, 130 interrupted."""
    show_progress("multismolvla_data")
    config = parse_options(RecordConfig)
    from multismolvla_data.record.job import record

    record(config)
    return 0


if __name__ == "__main__":
    sys.exit(main())
