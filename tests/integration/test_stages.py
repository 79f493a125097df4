"""What long commands show while they work: on terminals of any width, and in files."""

import json
import re
import subprocess
import sys

import pytest

from rapidin_cli.output.stages import Stage
from tests.support import tiny
from tests.support.terminals import watched

LONG = "a message " + " ".join(f"word{n}" for n in range(30))
SCRIPT = f"""
import time
from rapidin_cli.output import console
with console.counting("loading the model of a checkpoint whose name is long") as progress:
    time.sleep(0.4)
    console.say({LONG!r})
    for done in range(11):
        progress("checkpoint-with-a-long-name-300: rows", done, 10)
        if done in (3, 7):
            console.warn(f"row {{done}} is odd")
        time.sleep(0.15)
    progress("checkpoint-with-a-long-name-300: committing", 0, 0)
    time.sleep(0.3)
    for done in range(4):
        progress("scores", done, 10 + done)
        time.sleep(0.2)
    progress("nobody knows", 3, None)
    time.sleep(0.3)
console.say("done")
"""
BAR = re.compile(r"[━─=]{4}|[⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏] |  \d+/\d+  ")


@pytest.mark.parametrize("width", [40, 60, 80, 132])
def test_one_line_that_fits_and_messages_above_it(width):
    code, screens = watched(["-c", SCRIPT], width)
    assert code == 0
    text = "\n".join(screens[-1])
    assert text.replace("\n", "").replace(" ", "") == (
        f"{LONG}warning: row 3 is oddwarning: row 7 is odddone".replace(" ", "")
    ), text
    seen = set()
    for lines in screens:
        bars = [n for n, line in enumerate(lines) if BAR.search(line)]
        assert len(bars) <= 1, lines
        if bars:
            assert bars == [len(lines) - 1], lines
            assert len(lines[-1]) < width
            seen.add(lines[-1])
        assert not any("100%" in line for line in lines), lines
    bars = "\n".join(seen)
    for label in ("loading the mo", "checkpoint", ": rows", ": committing", "scores", "nobody"):
        assert label in bars, bars
    assert re.search(r"checkpoint\S*: rows  10/10  finishing", bars), bars
    assert re.search(r"checkpoint\S*: rows  .*5/10  1 s left", bars), bars
    if width >= 80:
        assert re.search(r"long-name-300: rows  [━─]{10,}  50%  5/10  1 s left", bars), bars
        assert re.search(r"scores .* 2/12", bars), bars
        assert "nobody knows  3" in bars


def test_in_a_file_a_line_at_each_start_and_one_from_time_to_time():
    quick = "import rapidin_cli.output.stages as s\ns.PLAIN_SECONDS = 0.5\n"
    found = {}
    for name, script in (("seldom", SCRIPT), ("often", quick + SCRIPT)):
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True
        )
        found[name] = done.stderr.splitlines()
    starts = [
        "loading the model of a checkpoint whose name is long ...",
        LONG,
        "checkpoint-with-a-long-name-300: rows ...",
        "warning: row 3 is odd",
        "warning: row 7 is odd",
        "checkpoint-with-a-long-name-300: committing ...",
        "scores ...",
        "nobody knows ...",
        "done",
    ]
    assert found["seldom"] == starts
    assert [line for line in found["often"] if line in starts] == starts
    more = [line for line in found["often"] if line not in starts]
    assert 3 <= len(more) <= 8, more
    assert any(re.fullmatch(r".*300: rows: \d/10, \d(\.\d)? s left", line) for line in more), more


def test_the_time_left_follows_what_was_measured():
    stage = Stage("rows", 0.0, expected=2.0)
    stage.reach(0, 10, 0.0, (0, 100))
    assert stage.left(0.0) == 200
    assert stage.left(50.0) == 150, "counts down until something is done"
    stage.reach(1, 10, 100.0, (50, 100))
    assert stage.left(100.0) == pytest.approx(100), "half of the work, though a tenth of the rows"
    assert stage.left(130.0) == pytest.approx(70)
    assert stage.left(400.0) == pytest.approx(400), "slower than before"
    for second in range(101, 400):
        stage.reach(1, 10, float(second), (50 + (second - 100) // 10, 100))
    assert stage.left(399.0) == pytest.approx((100 - 79) * 10, rel=0.2), (
        "what is long ago is forgotten"
    )
    stage.reach(10, 10, 500.0, (100, 100))
    assert (stage.left(500.0), stage.remaining(500.0)) == (None, "finishing")
    stage.reach(0, 10, 600.0, (0, 100))
    assert stage.counted == "0/10"
    assert stage.left(600.0) == 200, "begun again"


@pytest.mark.parametrize("width", [40, 80])
def test_caching_on_a_terminal(tmp_path, width):
    folder = tiny.project(tmp_path / "project", 200, adapter=False, batch_tokens=64)
    code, screens = watched(["-m", "rapidin_cli", "cache"], width, folder)
    assert code == 0
    shown = [lines for lines in screens if any(BAR.search(line) for line in lines)]
    assert all(sum(bool(BAR.search(line)) for line in lines) == 1 for lines in shown)
    assert all(BAR.search(lines[-1]) and len(lines[-1]) < width for lines in shown)
    assert not any("100%" in line for lines in screens for line in lines)
    last = "".join(screens[-1])
    assert not BAR.search(last)
    assert "tuned: 200 rows computed, 200 cached" in last
    bars = "\n".join(sorted({lines[-1] for lines in shown}))
    for stage in (": reading rin.toml", "tuned: reading the data", "tuned: loading the mod"):
        assert stage in bars, bars
    assert re.search(r"tuned: rows.* \d+/200 .*left", bars), bars


def test_the_dry_run_and_curvature_say_at_once_what_they_do(tmp_path):
    folder = tiny.project(tmp_path / "project", 20, adapter=False)
    for command, first in (
        (["cache", "--dry-run"], "estimating the cost: reading rin.toml and checkpoints ..."),
        (["curvature"], "curvature: reading rin.toml and checkpoints ..."),
    ):
        # Nothing that takes seconds is imported before that.
        script = (
            "import sys\n"
            "from rapidin_cli.output import stages\n"
            "plain = stages.Stages._print\n"
            "def tell(self, text):\n"
            "    slow = {'torch', 'zarr', 'transformers'} & set(sys.modules)\n"
            "    plain(self, text + ' ' + ','.join(sorted(slow)))\n"
            "stages.Stages._print = tell\n"
            "import rapidin_cli.commands.main as main\n"
            f"sys.argv = ['rin', *{json.dumps(command)}]\n"
            "main.main()\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, check=True
        )
        lines = done.stderr.splitlines()
        assert lines[0] == first + " ", done.stderr
        assert any("torch" in line for line in lines[1:])
        assert lines[-1].startswith("next: ")
