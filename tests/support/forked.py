"""`rin` as a user types it, forked from a process that has torch and peft imported already.

Importing them takes four seconds a command. What differs from a new process is only that;
tests of start-up, encodings and pipes start a real one (`tests.integration.test_commands`).
"""

import os
import subprocess
import sys
import tempfile
from multiprocessing import get_context
from pathlib import Path

PRELOAD = [
    *("torch", "transformers", "peft", "peft.tuners.lora", "zarr", "s3fs", "aiobotocore.session"),
    *("transformers.models.llama.modeling_llama", "rich.progress", "rapidin_cli.commands.main"),
    *("rapidin_cli.api", "rapidin_cli.influence.loaded_checkpoint", "rapidin_cli.report.terminal"),
]
PRELOAD += ["tests.support.impatient"]
_TIMEOUT = 120

_context = get_context("forkserver")
_context.set_forkserver_preload(PRELOAD)


def rin(folder, *arguments, stdin="", **environment):
    """Run one command to its end; returns what `subprocess.run` would."""
    return start(folder, *arguments, stdin=stdin, **environment).ended()


def start(folder, *arguments, stdin="", terminal="", **environment):
    """Begin one command, with its output on a terminal if the path of one is given.

    Of the environment it has what this process has; what is None is taken away.
    """
    known = {**os.environ, "COLUMNS": "100", **environment}
    settings = {name: value for name, value in known.items() if value is not None}
    return Running(folder, [str(argument) for argument in arguments], settings, stdin, terminal)


class Running:
    """A command under way: `process` is it, `ended` waits for it."""

    def __init__(self, folder, command, settings, stdin, terminal):
        self._command = command
        self._folder = tempfile.TemporaryDirectory()
        self._streams = [Path(self._folder.name) / name for name in ("in", "out", "err")]
        for stream in self._streams:
            stream.write_text(stdin if stream.name == "in" else "", encoding="utf-8")
        streams = [self._streams[0], terminal or self._streams[1], self._streams[2]]
        self.process = _context.Process(target=_serve, args=(folder, command, settings, streams))
        self.process.start()

    def ended(self, timeout=_TIMEOUT):
        """What `subprocess.run` would return; one that takes too long is killed."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
        out, err = (stream.read_text() for stream in self._streams[1:])
        self._folder.cleanup()
        return subprocess.CompletedProcess(self._command, self.process.exitcode, out, err)


def _serve(folder, command, settings, streams):
    from rapidin_cli.commands.main import main

    os.environ.clear()
    os.environ.update(settings)
    os.chdir(folder)
    for number, stream in enumerate(streams):
        mode = os.O_WRONLY | os.O_NOCTTY if number else os.O_RDONLY
        os.dup2(os.open(stream, mode), number)
    sys.argv = ["rin", *command]
    main()
