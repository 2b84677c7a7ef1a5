"""``python -m multismolvla_data.annotate``, and ``accelerate launch --module multismolvla_data.annotate``."""

import sys

from multismolvla_data.annotate.command import main

if __name__ == "__main__":
    sys.exit(main())
