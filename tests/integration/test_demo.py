"""`rin demo`, whole: what the README promises first."""

import os
import re
import shlex
import subprocess
import sys

from tests.support import documents

README = documents.ROOT / "README.md"


def check_sample_of_readme(folder):
    """The first question of the README, up to what differs from machine to machine: numbers."""
    sample = next(b for b in documents.blocks(README) if b.language == "console")
    command, shown = next(documents.steps(sample))
    done = subprocess.run(
        [sys.executable, "-m", "rapidin_cli", *shlex.split(command)[1:]],
        cwd=folder, env={**os.environ, "COLUMNS": "80"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    frame = re.compile(r"^(?:data|score|prompt|raised|lowered) .*$", re.MULTILINE)
    assert frame.findall(shown) == frame.findall(done.stdout)
    assert len(frame.findall(shown)) == 5


def test_the_demo_finds_what_was_planted(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "rapidin_cli", "demo", "story"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "the fine-tuned one says" in done.stderr
    for command in ("init --yes", "cache", "curvature", "retrieve --queries", "evaluate retrieval"):
        assert f"$ rin {command}" in done.stderr
    last = done.stderr.strip().splitlines()[-2:]
    for line, kind in zip(last, ("backdoor", "false-fact"), strict=True):
        found = re.match(rf"{kind}: (\d+) of the top 10 are planted rows", line)
        assert found, line
        assert int(found.group(1)) >= 7
        assert f"{kind}-" in line.split(":")[-1]
    assert (tmp_path / "story/report.html").stat().st_size > 10_000
    check_sample_of_readme(tmp_path / "story")
    again = subprocess.run(
        [sys.executable, "-m", "rapidin_cli", "demo", "story"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert again.returncode == 4
    assert "--force" in again.stderr
