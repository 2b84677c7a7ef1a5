"""Train a preset of ``configs/``: ``python train.py mini``. See ``python train.py --help``."""

import sys
from pathlib import Path

from multismolvla_run.pipeline import main

if __name__ == "__main__":
    sys.exit(main(configs=Path(__file__).resolve().parent / "configs"))
