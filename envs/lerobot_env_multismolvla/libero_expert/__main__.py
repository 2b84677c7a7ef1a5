"""``python -m lerobot_env_multismolvla.libero_expert``: see :mod:`.measure`."""

import sys

from .measure import main

if __name__ == "__main__":
    sys.exit(main())
