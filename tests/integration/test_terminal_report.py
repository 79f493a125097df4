"""`rin report` on a real terminal (a pseudo-terminal and a screen that reads what it gets)."""

import csv
import fcntl
import io
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections import Counter
from pathlib import Path
from typing import Any

import pyte
import pytest

from tests.support.browser import digest_of, expected_order, make_report, totals_order

SNAPSHOTS = Path(__file__).parents[1] / "data" / "terminal"
MODES = {
    "truecolor": {"TERM": "xterm-256color", "COLORTERM": "truecolor"},
    "256": {"TERM": "xterm-256color"},
    "16": {"TERM": "xterm"},
    "none": {"TERM": "xterm-256color", "NO_COLOR": "1"},
}
RIN = [sys.executable, "-m", "rapidin_cli"]
LINES = 400


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    made = make_report()
    made["queries"][0]["prompt"] = "[red]stop[/foo] Can I return a hat?"  # no markup of ours
    # Wide characters take two columns.
    made["queries"][0]["examples"][1]["response"] = "帽子は九十日以内に返品できます。🙂 はい。"
    made["queries"][0]["examples"][1] |= {"training": None, "cells": None}
    return made


@pytest.fixture(scope="module")
def folder(report: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("terminal")
    (root / "rin.toml").write_text('[data]\nfiles = ["data/faq.jsonl"]\n')
    saved = root / ".rin" / "results" / f"{report['id']}.json"
    saved.parent.mkdir(parents=True)
    saved.write_text(json.dumps(report), encoding="ascii")
    return root


def environment(**more: str) -> dict[str, str]:
    dropped = ("COLORTERM", "NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "TERM")
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    return {**kept, "PYTHONPATH": os.pathsep.join(sys.path), **more}


def on_terminal(folder: Path, width: int, mode: str, *arguments: str) -> bytes:
    """Run `rin report` with standard output on a terminal; return what it got."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, width, 0, 0))
    command = [*RIN, "report", *arguments]
    with subprocess.Popen(
        command, cwd=folder, env=environment(**MODES[mode]), stdout=theirs, stderr=subprocess.PIPE
    ) as process:
        os.close(theirs)
        got = b""
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:  # the other end was closed
                part = b""
            if not part:
                break
            got += part
        told = process.stderr.read().decode() if process.stderr else ""
    os.close(ours)
    assert process.returncode == 0, told
    return got


def piped(folder: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[bytes]:
    command = [*RIN, "report", *arguments]
    return subprocess.run(command, cwd=folder, env=environment(**more), capture_output=True)


def screen_of(got: bytes, width: int) -> pyte.Screen:
    screen = pyte.Screen(width, LINES)
    pyte.ByteStream(screen).feed(got)
    return screen


def picture(screen: pyte.Screen) -> str:
    """What is on a screen, and how many of its cells have which colours."""
    rows = [row.rstrip() for row in screen.display]
    while rows and not rows[-1]:
        rows.pop()
    styles: Counter[str] = Counter()
    for y in range(len(rows)):
        for cell in screen.buffer[y].values():
            bold = " bold" if cell.bold else ""
            if cell.data.strip() and (cell.fg, cell.bg, bold) != ("default", "default", ""):
                styles[f"{cell.fg} on {cell.bg}{bold}"] += 1
    told = [f"{count:5} {style}" for style, count in sorted(styles.items())]
    return "\n".join([*rows, "", "cells by colour:", *told, ""])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_it_looks_as_it_did(folder: Path, width: int, mode: str) -> None:
    got = on_terminal(folder, width, mode)
    shown = picture(screen_of(got, width))
    kept = SNAPSHOTS / f"{width}-{mode}.txt"
    if os.environ.get("RIN_UPDATE_SNAPSHOTS"):
        kept.parent.mkdir(exist_ok=True)
        kept.write_text(shown, encoding="utf-8")
    assert shown == kept.read_text(encoding="utf-8")


@pytest.mark.parametrize("arguments", [(), ("--example", "faq-0000")])
def test_hostile_text_sends_nothing_to_the_terminal_but_colours(
    folder: Path, arguments: tuple[str, ...]
) -> None:
    got = on_terminal(folder, 80, "truecolor", *arguments)
    rest = re.sub(rb"\x1b\[[0-9;]*m", b"", got).decode("utf-8")
    assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202e\u2028]", rest)
    assert "⟨U+202E⟩" in rest
    if not arguments:
        assert "[red]stop[/foo]" in rest


def test_ids_are_whole_at_every_width(folder: Path, report: dict[str, Any]) -> None:
    raised, lowered = totals_order(report["queries"][0])
    names = {e["digest"]: e["id"] for e in report["queries"][0]["examples"]}
    for width in (40, 60, 80, 120):
        text = picture(screen_of(on_terminal(folder, width, "none", "--query", "q-hat"), width))
        for digest in (*raised[:5], *lowered[:5]):
            assert re.search(rf"\b{names[digest]}\b", text), (width, names[digest])


def test_a_pipe_gets_plain_text_of_a_stable_width(folder: Path) -> None:
    done = piped(folder, TERM="xterm-256color", COLORTERM="truecolor")
    text = done.stdout.decode()
    assert done.returncode == 0
    assert not re.search("[\x1b│╭─]", text)
    assert all(line == line.rstrip() for line in text.split("\n"))
    assert text == piped(folder, TERM="dumb").stdout.decode()
    assert b"next: rin report 0123456789ab --html report.html" in done.stderr


def test_ascii_is_enough(folder: Path) -> None:
    done = piped(folder, LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    assert done.returncode == 0, done.stderr.decode()
    text = done.stdout.decode("ascii")
    assert "raised  +" in text
    assert "\\u2581" not in text


def test_a_reader_that_goes_away_is_no_error(folder: Path) -> None:
    for kind in ("", "--csv", "--jsonl", "--json"):
        line = f"set -o pipefail; {' '.join(RIN)} report {kind} | head -n 1"
        done = subprocess.run(
            ["bash", "-c", line], cwd=folder, env=environment(), capture_output=True, text=True
        )
        assert done.returncode == 0
        assert done.stdout
        assert "Traceback" not in done.stderr
        assert "Broken" not in done.stderr


@pytest.mark.parametrize(("token", "first", "last"), [("7", 7, 7), ("2:4", 2, 4)])
def test_tables_and_terminal_rank_by_tokens_as_python_does(
    folder: Path, report: dict[str, Any], token: str, first: int, last: int
) -> None:
    raised, lowered = expected_order(report["queries"][0], first, last)
    asked = ("--token", token, "--query", "q-hat")
    lines = list(csv.DictReader(io.StringIO(piped(folder, *asked, "--csv").stdout.decode())))
    assert [line["digest"] for line in lines] == [*raised, *lowered]
    records = [json.loads(line) for line in piped(folder, *asked, "--jsonl").stdout.splitlines()]
    assert [record["digest"] for record in records] == [*raised, *lowered]
    assert all(record["query"] == "q-hat" for record in records)
    names = {e["digest"]: e["id"] for e in report["queries"][0]["examples"]}
    text = piped(folder, *asked).stdout.decode()
    places = [text.index(names[digest]) for digest in (*raised[:5], *lowered[:5])]
    assert places == sorted(places)


def test_an_example_is_shown_with_its_tokens_and_layers(folder: Path) -> None:
    done = piped(folder, "--example", digest_of("example 2")[:10])
    assert done.returncode == 0, done.stderr.decode()
    text = done.stdout.decode()
    assert "model.layers.1.self_attn.q_proj" in text
    assert "generated token" in text
    assert "its influence on each generated token" in text
