"""A newcomer's walk: each command is the one that the command before has printed."""

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support import tiny
from tests.support.forked import rin


@pytest.fixture
def repository(tmp_path):
    """Somebody's repository: Alpaca rows, a base model and an adapter on it."""
    folder = tiny.project(tmp_path / "team", 2)
    for name in ("rin.toml", "data.jsonl"):
        (folder / name).unlink()
    rows = [
        {"instruction": row["prompt"], "input": "", "output": row["response"]}
        for row in tiny.rows(36)
    ]
    (folder / "alpaca.json").write_text(json.dumps(rows, indent=1))
    subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
    return folder


@pytest.fixture
def copied(cached_project, tmp_path):
    return Path(shutil.copytree(cached_project, tmp_path / "copy"))


def follow(folder, command):
    """Run a command line as it was printed, and return the next one."""
    name, *arguments = shlex.split(command)
    assert name == "rin"
    done = rin(folder, *arguments)
    assert done.returncode == 0, (command, done.stderr)
    found = re.findall(r"^next: (.*)$", done.stderr, re.MULTILINE)
    assert len(found) <= 1
    return found[0] if found else ""


def test_from_a_repository_to_a_page_in_the_browser(repository):
    said = follow(repository, "rin init --yes")
    walked = ["rin init --yes"]
    while said:
        walked.append(said)
        said = follow(repository, said)
        assert len(walked) <= 5
    assert [line.split()[1] for line in walked] == ["init", "cache", "retrieve", "report"]
    page = (repository / "report.html").read_text()
    assert tiny.rows(1)[0]["prompt"] in page
    ignored = subprocess.run(
        ["git", "status", "--porcelain"], cwd=repository, capture_output=True, text=True, check=True
    ).stdout
    assert ".rin/" not in ignored
    assert "?? rin.lock" in ignored


def test_a_dry_run_leads_to_the_same_command_without_it(repository):
    follow(repository, "rin init --yes")
    said = follow(repository, "rin cache --workers 1 --dry-run --skip-bad")
    assert said == "rin cache --workers 1 --skip-bad"
    assert follow(repository, said).startswith("rin retrieve ")
    assert follow(repository, "rin cache --dry-run").startswith("rin retrieve ")


def test_curvature_leads_to_a_question(copied):
    said = follow(copied, "rin curvature")
    assert said.endswith("--score ekfac")
    assert follow(copied, said).startswith("rin report ")


def no_checkpoint(folder):
    text = (folder / "rin.toml").read_text()
    (folder / "rin.toml").write_text(re.sub(r"\[\[checkpoints\]\]\n.*\n.*\n", "", text))


def nothing_cached(folder):
    shutil.rmtree(folder / ".rin")


def half_cached(folder):
    tiny.write_jsonl(folder / "data.jsonl", tiny.rows(60))


def data_changed(folder):
    tiny.write_jsonl(folder / "data.jsonl", tiny.rows(60)[20:])


def rows_removed(folder):
    tiny.write_jsonl(folder / "data.jsonl", tiny.rows(30))


def lock_gone(folder):
    (folder / "rin.lock").unlink()


def all_cached(folder):
    pass


def all_cached_of_chats(folder):
    """Whose first prompts cannot be typed in a line."""
    turns = [
        [("user", "a\nb"), ("assistant", "c")],
        [("system", "d"), ("user", "e"), ("assistant", "f")],
    ]
    chats = [{"messages": [{"role": r, "content": c} for r, c in turn]} for turn in turns]
    tiny.write_jsonl(folder / "data.jsonl", chats)
    assert rin(folder, "cache").returncode == 0


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (nothing_cached, r"rin cache"),
        (half_cached, r"rin cache"),
        (data_changed, r"rin cache"),
        (rows_removed, r"rin cache"),
        (lock_gone, r"rin cache"),
        (all_cached, r"rin retrieve --prompt 'Where is the cat number 0\?' --generate"),
        (all_cached_of_chats, r"rin retrieve --row data.jsonl:1"),
    ],
)
def test_status_leads_on_from_every_state(copied, change, expected):
    change(copied)
    said = follow(copied, "rin status")
    assert re.fullmatch(expected, said)
    then = follow(copied, said)
    if said == "rin cache":
        assert follow(copied, "rin status").startswith("rin retrieve ")
    assert then.split()[1] in ("retrieve", "report")


def test_status_without_a_checkpoint_says_what_to_add(copied):
    no_checkpoint(copied)
    done = rin(copied, "status")
    assert done.returncode == 4
    assert (
        "next:  add [[checkpoints]] with a name and a path to rin.toml, then rin cache"
        in done.stderr
    )


def test_of_several_checkpoints_it_asks_one_that_is_cached(copied):
    shutil.copytree(copied / "adapter", copied / "later")
    with (copied / "rin.toml").open("a") as file:
        file.write('\n[[checkpoints]]\nname = "later"\npath = "later"\n')
    said = follow(copied, "rin cache tuned")
    assert said.endswith("--generate --checkpoint tuned")
    assert follow(copied, said).startswith("rin report ")
