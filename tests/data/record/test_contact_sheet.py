"""The contact sheet: what it shows must not hide what is there."""

import numpy as np

from multismolvla_data.record.contact_sheet import colorize


def test_no_class_looks_like_the_background():
    ids = np.arange(33, dtype=np.uint8)  # as many as LIBERO's suites have
    colors = colorize(np.repeat(ids[None, :, None], 3, axis=2), "seg")[0]
    assert not (colors[1:] == colors[0]).all(axis=1).any()
    assert len(np.unique(colors[:8], axis=0)) == 8
