"""Simulators and a policy server without simulator and policy, for tests of the pool."""

from __future__ import annotations

import os
import sys
import time

from multismolvla_eval.worker import SERVER_GONE, begin


def questions(parent, receive):
    """Yields (simulator, question) until the parent is gone; a server's other messages are dealt with here.

    Args:
        parent: brings the connections of new simulators, and asks whether the server is alive.
        receive: ``receive(connections)``, those that have something to say.
    """
    from multismolvla_eval.server import ALIVE

    simulators = []
    while True:
        for connection in receive([parent, *simulators]):
            try:
                message = connection.recv()
            except (EOFError, ConnectionResetError):
                if connection is parent:
                    return
                simulators.remove(connection)
                continue
            if connection is not parent:
                yield connection, message
            elif message == ALIVE:
                parent.send(ALIVE)
            else:
                simulators.append(message)


def server_main(arguments, parent):
    """Answers each question with itself; dies of the episodes named in the option ``deadly``."""
    from multiprocessing.connection import wait

    begin(arguments)
    if arguments.env.options.get("broken"):
        raise ValueError("the toy server is broken on purpose")
    parent.send("ready")
    for simulator, question in questions(parent, wait):
        if list(question) in arguments.env.options.get("deadly", []):
            os.abort()
        simulator.send(question)


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
