"""The tab key: commands, checkpoints, results and remotes, at once and without a word of error."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.forked import rin

RIN = Path(sys.executable).parent / "rin"
TOML = """
[data]
files = ["gone.jsonl"]
[[checkpoints]]
name = "early"
path = "gone"
[[checkpoints]]
name = "late"
path = "gone"
[remote.origin]
url = "s3://bucket/prefix"
[remote.other]
url = "s3://bucket/other"
"""
CHECKPOINTS, REMOTES, RESULTS = ["early", "late"], ["origin", "other"], ["newer", "older"]


@pytest.fixture
def project(tmp_path):
    (tmp_path / "rin.toml").write_text(TOML)
    results = tmp_path / ".rin/results"
    results.mkdir(parents=True)
    for age, name in enumerate(RESULTS):
        (results / f"{name}.json").write_text("{}")
        os.utime(results / f"{name}.json", (1e9 - age, 1e9 - age))
    return tmp_path


def tab(folder, line, run=rin):
    """What bash is told when the tab key is pressed at the end of a line."""
    settings = {"COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
    done = run(folder, _RIN_COMPLETE="complete_bash", **settings)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout.split()


def new_process(folder, **settings):
    return subprocess.run(
        [RIN],
        cwd=folder, capture_output=True, text=True, check=False, env={**os.environ, **settings},
    )  # fmt: skip


CASES = [
    ("rin ca", ["cache"]),
    ("rin cache ", CHECKPOINTS),
    ("rin cache l", ["late"]),
    ("rin cache --root ", REMOTES),
    ("rin curvature early ", CHECKPOINTS),
    ("rin retrieve --checkpoint ", CHECKPOINTS),
    ("rin retrieve --checkpoints ", [*CHECKPOINTS, "all"]),
    ("rin retrieve --checkpoints early,", ["early,late"]),
    ("rin retrieve --score a", ["auto", "adam"]),
    ("rin report ", RESULTS),
    ("rin report o", ["older"]),
    ("rin report older --against ", RESULTS),
    ("rin diff ", CHECKPOINTS),
    ("rin diff early ", CHECKPOINTS),
    ("rin diff early --result ", RESULTS),
    ("rin show --checkpoint ", CHECKPOINTS),
    ("rin evaluate lds --checkpoint ", CHECKPOINTS),
    ("rin log ", CHECKPOINTS),
    ("rin log --remote ", REMOTES),
    ("rin export ", CHECKPOINTS),
    ("rin push ", REMOTES),
    ("rin pull --checkpoint ", CHECKPOINTS),
    ("rin verify --remote ", REMOTES),
    ("rin gc --remote ", REMOTES),
    ("rin remote remove ", REMOTES),
]


@pytest.mark.parametrize(("line", "expected"), CASES)
def test_it_completes(project, line, expected):
    assert tab(project, line) == expected


def test_in_another_folder_of_the_project_and_from_outside(project, tmp_path_factory):
    inner = project / "deeper"
    inner.mkdir()
    assert tab(inner, "rin cache ") == CHECKPOINTS
    assert tab(tmp_path_factory.mktemp("outside"), f"rin -C {project} cache ") == CHECKPOINTS


@pytest.mark.parametrize("content", [None, "[data", "\xff", '[data]\nfiles = "no list"'])
def test_where_there_is_no_project_that_can_be_read_it_says_nothing(tmp_path, content):
    if content is not None:
        (tmp_path / "rin.toml").write_text(content, encoding="latin-1")
    for line in ("rin cache ", "rin report ", "rin push ", "rin retrieve --checkpoints a,"):
        assert tab(tmp_path, line) == []
    assert tab(tmp_path, "rin repo") == ["report"]


def test_it_writes_nothing_and_imports_nothing_heavy(project):
    before = sorted(project.rglob("*"))
    code = (
        "import atexit, sys\n"
        "heavy = ('torch', 'transformers', 'peft', 'zarr', 's3fs', 'numpy', 'fsspec')\n"
        "atexit.register(lambda: print([m for m in heavy if m in sys.modules], file=sys.stderr))\n"
        "from rapidin_cli.commands.main import main\n"
        "main()\n"
    )
    settings = {"_RIN_COMPLETE": "complete_bash", "COMP_CWORD": "2"}
    for line in ("rin cache ", "rin report ", "rin push "):
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=project, capture_output=True, text=True, check=False,
            env={**os.environ, **settings, "COMP_WORDS": line},
        )  # fmt: skip
        assert done.stderr.strip() == "[]"
        assert done.stdout
    assert sorted(project.rglob("*")) == before


def test_it_answers_as_fast_as_the_help(project):
    """0.3 s is the promise; machines differ, so the bound is on the ratio to bare imports."""

    def best(run):
        times = []
        for _ in range(3):
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
        return min(times)

    bare = [sys.executable, "-c", "import typer.main, typer.rich_utils"]
    needed = best(lambda: subprocess.run(bare, check=True))
    assert best(lambda: tab(project, "rin report ", new_process)) < 2.5 * needed


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
def test_a_real_bash_completes(project):
    """With what `rin --show-completion` prints, through the function that it registers."""
    script = f"""
    PATH={RIN.parent}:$PATH
    source <(rin --show-completion)
    press() {{
        COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${{#COMP_LINE}}
        COMPREPLY=()
        "$(complete -p rin | sed 's/.*-F \\([^ ]*\\).*/\\1/')" rin "${{@: -1}}" "${{@: -2:1}}"
        echo "${{COMPREPLY[*]}}"
    }}
    press rin retr
    press rin cache ""
    press rin report ""
    """
    done = subprocess.run(
        ["bash", "--norc", "-c", script],
        cwd=project, capture_output=True, text=True, check=False,
        env={**os.environ, "SHELL": "/bin/bash"},
    )  # fmt: skip
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["retrieve", " ".join(CHECKPOINTS), " ".join(RESULTS)]


def test_every_score_is_among_those_that_are_completed():
    from rapidin_cli.commands.completion import SCORES
    from rapidin_cli.influence.score import AUTO
    from rapidin_cli.influence.score import SCORES as KNOWN

    assert sorted(SCORES) == sorted([AUTO, *KNOWN])
