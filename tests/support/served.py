"""`rin` and `python` on a PATH for shells, forked from one process with torch and peft imported.

As in `forked`, only the imports are spared: each command is a process of its own with the caller's
folder, environment, standard input and outputs, and the caller gets its exit status.
"""

import gc
import json
import os
import runpy
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

from tests.support.forked import PRELOAD

_READY_SECONDS = 60
_SHIM = """#!{python} -IS
import json, os, socket, sys
link = socket.socket(socket.AF_UNIX)
link.connect({address!r})
asked = [{name!r}, sys.argv[1:], os.getcwd(), dict(os.environ)]
socket.send_fds(link, [b"."], [0, 1, 2])
link.sendall(json.dumps(asked).encode())
link.shutdown(socket.SHUT_WR)
sys.exit(int(link.recv(8) or 1))
"""


@contextmanager
def commands(folder: Path) -> Iterator[Path]:
    """Yield a folder for the PATH, in which are `rin` and `python`."""
    address = str(folder / "socket")
    shims = folder / "bin"
    shims.mkdir()
    for name in ("rin", "python"):
        shim = shims / name
        shim.write_text(_SHIM.format(python=sys.executable, address=address, name=name))
        shim.chmod(0o700)
    here = Path(__file__).parents[2]
    server = subprocess.Popen([sys.executable, "-m", "tests.support.served", address], cwd=here)
    try:
        until = time.monotonic() + _READY_SECONDS
        while not Path(address).exists():
            assert server.poll() is None
            assert time.monotonic() < until, "the server of commands did not start"
            time.sleep(0.05)
        yield shims
    finally:
        server.terminate()
        server.wait()


def _serve(address: str) -> None:
    for name in PRELOAD:
        import_module(name)
    gc.freeze()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address + ".new")
    listener.listen()
    Path(address + ".new").rename(address)
    children: set[int] = set()
    while True:
        link, _ = listener.accept()
        children = {child for child in children if os.waitpid(child, os.WNOHANG)[0] == 0}
        if child := os.fork():
            children.add(child)
            link.close()
        else:
            listener.close()
            _answer(link)


def _answer(link: socket.socket) -> None:
    """Run one command in a child, so that whatever it does, its status can be told."""
    _, streams, _, _ = socket.recv_fds(link, 1, 3)
    asked = b"".join(iter(lambda: link.recv(1 << 16), b""))
    name, arguments, folder, environment = json.loads(asked)
    if child := os.fork():
        _, status = os.waitpid(child, 0)
        link.sendall(str(os.waitstatus_to_exitcode(status) % 256).encode())
        os._exit(0)
    link.close()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    code = 1
    try:
        _rin(arguments) if name == "rin" else _python(arguments)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # taking down all those imports takes a second


def _rin(arguments: list[str]) -> None:
    from rapidin_cli.commands.main import main

    sys.argv = ["rin", *arguments]
    main()


def _python(arguments: list[str]) -> None:
    """`python FILE ...` or `python -c CODE ...`."""
    sys.path[0] = ""
    if arguments[0] == "-c":
        sys.argv = ["-c", *arguments[2:]]
        exec(compile(arguments[1], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")


if __name__ == "__main__":
    _serve(sys.argv[1])
