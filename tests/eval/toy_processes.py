"""Simulators and a policy server without simulator and policy, for tests of the pool."""

from __future__ import annotations

import os
import sys
import time

from multismolvla_eval.worker import SERVER_GONE, begin


def server_main(arguments, parent):
    """Answers each question with itself; dies of the episodes named in the option ``deadly``."""
    from multiprocessing.connection import wait

    begin(arguments)
    if arguments.env.options.get("broken"):
        raise ValueError("the toy server is broken on purpose")
    simulators = []
    parent.send("ready")
    while True:
        for connection in wait([parent, *simulators]):
            try:
                message = connection.recv()
            except (EOFError, ConnectionResetError):
                if connection is parent:
                    return
                simulators.remove(connection)
                continue
            if connection is parent:
                simulators.append(message)
            elif list(message) in arguments.env.options.get("deadly", []):
                os.abort()
            else:
                connection.send(message)


def worker_main(arguments, pipe, server=None):
    """An episode is a question to the server."""
    begin(arguments)
    import multismolvla_eval.plan  # noqa: F401 - takes seconds, and would when the first episode arrives

    def ask(message):
        try:
            server.send(message)
            return server.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            sys.exit(SERVER_GONE)

    ask((-1, -1))
    pipe.send(("ready", {}))
    while True:
        try:
            episode = pipe.recv()
        except EOFError:
            return
        if [episode.task_id, episode.episode] in arguments.env.options.get("crash", []):
            os.abort()
        time.sleep(0.3)  # so that no simulator does everything before another one's death is noticed
        task_id, number = ask((episode.task_id, episode.episode))
        pipe.send(("row", {"task_id": task_id, "episode": number}))
