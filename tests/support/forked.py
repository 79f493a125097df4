"""`rin` as a user types it, forked from a process that has torch and peft imported already.

Importing them takes four seconds a command. What differs from a new process is only that;
tests of start-up, encodings and signals start a real one (`tests.integration.test_commands`).
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


def rin(folder, *arguments, **environment):
    """Run one command to its end; returns what `subprocess.run` would."""
    settings = {**os.environ, "COLUMNS": "100", **environment}
    with tempfile.TemporaryDirectory() as outputs:
        paths = [Path(outputs) / name for name in ("out", "err")]
        command = [str(argument) for argument in arguments]
        process = _context.Process(target=_serve, args=(folder, command, settings, paths))
        process.start()
        process.join(_TIMEOUT)
        if process.exitcode is None:
            process.kill()
            process.join()
        out, err = (path.read_text() for path in paths)
        return subprocess.CompletedProcess(command, process.exitcode, out, err)


def _serve(folder, command, settings, paths):
    from rapidin_cli.commands.main import main

    os.environ.clear()
    os.environ.update(settings)
    os.chdir(folder)
    with Path(os.devnull).open() as nothing:
        os.dup2(nothing.fileno(), 0)
    for number, path in enumerate(paths, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), number)
    sys.argv = ["rin", *command]
    main()
