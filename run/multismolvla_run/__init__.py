"""Commands around the job: environment check, training driver, export and the demo.

They start other programs and look at the machine. Nothing here imports LeRobot or torch (five seconds), so
that ``--help`` and ``--dry-run`` answer at once and ``multismolvla-doctor`` still speaks when one of them is
broken.
"""
