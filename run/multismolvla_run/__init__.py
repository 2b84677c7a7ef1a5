"""Commands around the job: environment check, training driver and the demo.

They start other programs and look at the machine; the work itself lives in the other packages. This package imports
neither LeRobot nor torch, so that ``--help`` and ``--dry-run`` answer at once and ``multismolvla-doctor`` can still
speak when one of them is broken. (The plugin packages import LeRobot on their first line, which takes about five
seconds: LeRobot discovers them that way.)
"""
