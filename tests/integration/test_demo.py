"""`rin demo`, whole: what the README promises first."""

import re
import subprocess
import sys


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
    again = subprocess.run(
        [sys.executable, "-m", "rapidin_cli", "demo", "story"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert again.returncode == 4
    assert "--force" in again.stderr
