"""Processes that work for another one."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import threading


def end_with_parent() -> None:
    """End this process as soon as the one that started it is gone, also after kill -9.

    To be called in a process of :mod:`multiprocessing`, before its work. In any other process it does
    nothing.
    """
    threading.Thread(target=_wait_for_parent, daemon=True, name="end-with-parent").start()


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)
