"""`rin report` on a real terminal (a pseudo-terminal and a screen that reads what it gets)."""

import csv
import fcntl
import io
import json
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
from collections import Counter
from pathlib import Path
from typing import Any

import pyte
import pytest

from tests.support import forked
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


DROPPED = ("COLORTERM", "NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "TERM")


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in DROPPED}
    return {**kept, "PYTHONPATH": os.pathsep.join(sys.path), **more}


def report_of(folder: Path, *arguments: str, terminal: str = "", **more: str) -> forked.Running:
    """Begin `rin report`, in a process that has the imports: start-up is tested elsewhere."""
    settings: dict[str, str | None] = {**dict.fromkeys(DROPPED), **more}
    return forked.start(folder, "report", *arguments, terminal=terminal, **settings)


def on_terminal(folder: Path, width: int, mode: str, *arguments: str) -> bytes:
    """Run `rin report` with standard output on a terminal; return what it got."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, width, 0, 0))
    running = report_of(folder, *arguments, terminal=os.ttyname(theirs), **MODES[mode])
    got = b""
    while running.process.is_alive():
        got += waiting(ours)
    done = running.ended()
    while part := waiting(ours):
        got += part
    os.close(theirs)
    os.close(ours)
    assert done.returncode == 0, done.stderr
    return got


def waiting(terminal: int) -> bytes:
    """What a program has written to a terminal by now, or does within a moment."""
    readable, _, _ = select.select([terminal], [], [], 0.02)
    return os.read(terminal, 65536) if readable else b""


def piped(folder: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    return report_of(folder, *arguments, **more).ended()


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
    text = done.stdout
    assert done.returncode == 0
    assert not re.search("[\x1b│╭─]", text)
    assert all(line == line.rstrip() for line in text.split("\n"))
    assert text == piped(folder, TERM="dumb").stdout
    assert "next: rin report 0123456789ab --html report.html" in done.stderr


def test_ascii_is_enough(folder: Path) -> None:
    ascii_only = environment(LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    done = subprocess.run([*RIN, "report"], cwd=folder, env=ascii_only, capture_output=True)
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
    lines = list(csv.DictReader(io.StringIO(piped(folder, *asked, "--csv").stdout)))
    assert [line["digest"] for line in lines] == [*raised, *lowered]
    records = [json.loads(line) for line in piped(folder, *asked, "--jsonl").stdout.splitlines()]
    assert [record["digest"] for record in records] == [*raised, *lowered]
    assert all(record["query"] == "q-hat" for record in records)
    names = {e["digest"]: e["id"] for e in report["queries"][0]["examples"]}
    text = piped(folder, *asked).stdout
    places = [text.index(names[digest]) for digest in (*raised[:5], *lowered[:5])]
    assert places == sorted(places)


def test_an_example_is_shown_with_its_tokens_and_layers(folder: Path) -> None:
    done = piped(folder, "--example", digest_of("example 2")[:10])
    assert done.returncode == 0, done.stderr
    text = done.stdout
    assert "model.layers.1.self_attn.q_proj" in text
    assert "generated token" in text
    assert "its influence on each generated token" in text
