"""Programs on a pseudo-terminal, and every picture that they leave on its screen."""

import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios

import pyte

LINES = 60
DROPPED = ("COLORTERM", "NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "TERM")


def watched(command, width, folder=None, timeout=120):
    """Run Python with stderr on a terminal; return its exit code and the screens, in order.

    A screen is its lines from the top without blanks at their ends; each is seen after a write.
    """
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, width, 0, 0))
    kept = {name: value for name, value in os.environ.items() if name not in DROPPED}
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=folder,
        env={**kept, "PYTHONPATH": os.pathsep.join(sys.path), "TERM": "xterm-256color"},
        stdin=theirs,
        stdout=subprocess.DEVNULL,
        stderr=theirs,
    )
    os.close(theirs)
    screen = pyte.Screen(width, LINES)
    stream = pyte.ByteStream(screen)
    screens = []
    while select.select([ours], [], [], timeout)[0]:
        try:
            got = os.read(ours, 65536)
        except OSError:  # the other end was closed
            break
        if not got:
            break
        stream.feed(got)
        lines = [line.rstrip() for line in screen.display]
        while lines and not lines[-1]:
            lines.pop()
        screens.append(lines)
    os.close(ours)
    return process.wait(timeout), screens
