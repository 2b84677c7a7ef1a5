"""``python -m lerobot_env_multismolvla.libero_expert``: see :mod:`.measure`."""

import sys

from lerobot_env_multismolvla.libero_expert.measure import main

if __name__ == "__main__":
    sys.exit(main())
