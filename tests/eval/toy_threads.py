"""Simulators and a policy server as threads, for tests of what the pool decides: a process takes a second to start."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait

from toy_processes import questions

from multismolvla_eval.worker import SERVER_GONE

CRASH, KILLED = -6, -9


class Context:
    """Stands in for ``multiprocessing.get_context()``."""

    Pipe = staticmethod(Pipe)

    def Process(self, target, args, daemon, name):  # noqa: N802 - multiprocessing's name
        return Process(target, args)


class Process:
    """A thread with the interface of a process; it ends with ``SystemExit(exit code)``."""

    def __init__(self, target, args) -> None:
        # the parent closes its copies of the connections, as it does for processes
        self._args = [Connection(os.dup(a.fileno())) if isinstance(a, Connection) else a for a in args]
        self.name, self.exitcode, self.killed = target.__name__, None, threading.Event()
        self.sentinel, self._open = os.pipe()
        self._thread = threading.Thread(target=self._run, args=(target,), daemon=True)

    def start(self):
        self._thread.start()

    def join(self, timeout=None):
        self._thread.join(timeout)

    def is_alive(self):
        return self._thread.is_alive()

    def kill(self):
        self.killed.set()

    terminate = kill

    def _run(self, target):
        try:
            target(self, *self._args)
            self.exitcode = 0
        except SystemExit as end:
            self.exitcode = end.code
        finally:
            for argument in self._args:
                if isinstance(argument, Connection):
                    argument.close()
            os.close(self._open)

    def receive(self, connections):
        """The connections that have something to say; ends the process when it is killed."""
        while not self.killed.is_set():
            ready = wait(connections, 0.02)
            if ready:
                return ready
        raise SystemExit(KILLED)

    def hang(self):
        self.killed.wait()
        raise SystemExit(KILLED)


def worker_main(process, arguments, pipe, server=None):
    """An episode is a question to the server.

    Options: places that ``crash`` or ``hang``; a list of those ``done``, of which there can be ``at_most`` so many before
    everything crashes; numbers of starts that are ``unloadable`` or that never get ready (``late``), and the list of ``starts`` made.
    """
    options = arguments.env.options
    options["starts"].append(process)
    if len(options["starts"]) in options.get("unloadable", ()):
        raise SystemExit(CRASH)
    if len(options["starts"]) in options.get("late", ()):
        process.hang()

    def ask(message):
        try:
            server.send(message)
            process.receive([server])
            return server.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            raise SystemExit(SERVER_GONE) from None

    ask("facts")
    pipe.send(("ready", {}))
    while True:
        process.receive([pipe])
        try:
            episode = pipe.recv()
        except EOFError:
            return
        place = (episode.task_id, episode.episode)
        if place in options.get("crash", ()) or len(options["done"]) >= options.get("at_most", 99):
            raise SystemExit(CRASH)
        if place in options.get("hang", ()):
            process.hang()
        row = dict(zip(("task_id", "episode"), ask(place), strict=True))
        options["done"].append(place)
        pipe.send(("row", row))


def server_main(process, arguments, parent):
    """Answers each question with itself; dies of the places in the option ``deadly``, and hangs at those in ``mute``.

    With ``late_server`` it never gets ready.
    """
    options = arguments.env.options
    if options.get("late_server"):
        process.hang()
    parent.send("ready")
    for simulator, question in questions(parent, process.receive):
        if question in options.get("deadly", ()):
            raise SystemExit(CRASH)
        if question in options.get("mute", ()):
            process.hang()
        with suppress(BrokenPipeError):  # the simulator went away meanwhile
            simulator.send(question)
