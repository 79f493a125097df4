"""What claims absurd sizes is read by a process of its own with little memory."""

import json
import os
import resource
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from rapidin_storage import StorageError, open_root
from rapidin_storage.gc import find_garbage
from tests.support.damage import EVERY, everything, newest, only, problems
from tests.support.stored import writer

ROOT = Path(__file__).parents[2]


class Sandbox:
    """A process with little memory that looks at stores; it is replaced when it dies."""

    SECONDS = 20

    def __init__(self):
        self.process = None

    def look(self, root):
        """What each operation on a store ended in, see `look`."""
        if self.process is None:
            self.process = subprocess.Popen(
                [sys.executable, "-m", __name__],
                cwd=ROOT,
                env={**os.environ, "MALLOC_ARENA_MAX": "1"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        timer = threading.Timer(self.SECONDS, self.process.kill)
        timer.start()
        try:
            self.process.stdin.write(f"{root.folder}\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        finally:
            timer.cancel()
        if not line:
            code = self.process.wait()
            self.close()
            pytest.fail(f"the process that read the store died ({code}), or took too long")
        return json.loads(line)

    def close(self):
        if self.process is not None:
            self.process.stdin.close()
            self.process.kill()
            self.process.wait()
            self.process.stdout.close()
            self.process = None


def look(root):
    """Try every way of reading; return name -> a value, or the error as [type, ours, text]."""

    def read():
        return "right" if everything(root) == only(EVERY) else "wrong"

    operations = {
        "read": read,
        "index": lambda: "right" if set(newest(root).index) == set(only(EVERY)) else "wrong",
        "old": lambda: "right" if everything(root, 3) == only(EVERY) else "wrong",
        "verify": lambda: [problem.message for problem in problems(root)],
        "garbage": lambda: len(find_garbage(root, -3600).entries),
        "write": lambda: writer(root).new_rows,
    }
    seen = {}
    for name, operation in operations.items():
        try:
            seen[name] = operation()
        except BaseException as error:
            ours = isinstance(error, StorageError)
            seen[name] = {"type": type(error).__name__, "ours": ours, "text": str(error)[:2000]}
    return seen


def serve():
    """Look at the stores whose folders come in; from the second on with little memory."""
    for line in sys.stdin:
        print(json.dumps(look(open_root(line.rstrip("\n")))), flush=True)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + 400 * 2**20
        if resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY:
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


if __name__ == "__main__":
    serve()
