"""What becomes of the sensors, shown where a roll-out shows its data (``--display_data=true``).

LeRobot 0.6.1 sends the robot's pictures, colour and depth, and the numbers of state and action to rerun, and
a layout with one view for each picture and no others. A view shows what is logged below its picture, so a
word in the picture is what can be added without a layout of one's own.
"""

from __future__ import annotations

import sys

#: As LeRobot names the pictures of an observation, in data sets and in rerun.
_IN_DATA, _SHOWN = "observation.images.", "observation."
_PLACE = (8, 16)  # of the word in the picture, pixels
_RED = (230, 30, 30)


def show_state(key: str, lost: str | None) -> None:
    """Write in a stream's picture why it is not used, or wipe that out; nothing where nothing is shown.

    Args:
        key: of the stream, e.g. ``observation.images.front_depth``.
        lost: why it is lost; ``None`` = it is there.
    """
    rerun = sys.modules.get("rerun")  # LeRobot has imported it where it shows anything
    if rerun is None or rerun.get_global_data_recording() is None:
        return
    picture = f"{_SHOWN}{key.removeprefix(_IN_DATA)}"
    if lost is None:
        rerun.log(f"{picture}/health", rerun.Clear(recursive=False))
        rerun.log("health", rerun.TextLog(f"{picture}: used", level="INFO"))
    else:
        word = rerun.Points2D([_PLACE], labels=[f"not used: {lost}"], colors=[_RED], show_labels=True)
        rerun.log(f"{picture}/health", word)
        rerun.log("health", rerun.TextLog(f"{picture}: not used, {lost}", level="WARN"))
