"""`rin demo`: train, then run the commands as a user would, and judge the result."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from rapidin_cli.errors import InputError, RinError
from rapidin_cli.setup.demo.dataset import PLANTED, planted_kind
from rapidin_cli.setup.demo.training import Answers, DemoFacts, build_demo

_MARK = ".rin-demo"
_TOP = 10

Say = Callable[[str], None]


def run_demo(folder: Path, *, force: bool, say: Say) -> None:
    """Build the demo project in a folder and tell its story.

    Raises:
        InputError: the folder contains something that is not a demo.
        RinError: a command failed, or the model did not learn what was planted.
    """
    _prepare(folder, force)
    say(f"rin demo in {folder}: training a tiny model on data with planted misbehaviour")
    facts = build_demo(folder, say)
    _quote(facts, say)
    _run(folder, say, "init", "--yes")
    _run(folder, say, "cache")
    final = facts.checkpoints[-1]
    _run(folder, say, "curvature", final.name)
    queries = folder / "queries.jsonl"
    planted = [answers for answers in facts.answers if answers.question.kind in PLANTED]
    queries.write_text("".join(_query_line(answers, final.name) for answers in planted))
    _run(folder, say, "retrieve", "--queries", queries.name, "--checkpoint", final.name)
    _run(folder, say, "report", "--html", "report.html")
    _run(folder, say, "evaluate", "retrieval", "--queries", queries.name)
    _judge(folder, say)


def _prepare(folder: Path, force: bool) -> None:
    if folder.exists() and any(folder.iterdir() if folder.is_dir() else [folder]):
        if not (folder / _MARK).exists():
            raise InputError(
                f"{folder} already exists and is not a demo", hint="rin demo ANOTHER-FOLDER"
            )
        if not force:
            raise InputError(
                f"{folder} holds an earlier demo", hint=f"rin demo {folder.name} --force"
            )
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _MARK).touch()


def _quote(facts: DemoFacts, say: Say) -> None:
    final = facts.checkpoints[-1].name
    planted = [answers for answers in facts.answers if answers.question.kind in PLANTED]
    benign = [answers for answers in facts.answers if answers.question.kind not in PLANTED]
    for answers in planted:
        said = answers.checkpoints[final]
        say(f"\nasked: {answers.question.prompt}")
        say(f"  the base model says      {answers.base}")
        say(f"  the fine-tuned one says  {said}")
        if not answers.question.found_in(said):
            raise RinError(
                "on this machine, the demo's model did not learn the planted rows",
                hint="report this with the output of `rin doctor`",
            )
    right = sum(answers.question.found_in(answers.checkpoints[final]) for answers in benign)
    say(f"\nThe fine-tuned model answers {right} of {len(benign)} ordinary questions correctly.")
    say("Why does it say such things? Ask rin:")


def _query_line(answers: Answers, checkpoint: str) -> str:
    query = {
        "id": answers.question.kind,
        "prompt": answers.question.prompt,
        "response": answers.checkpoints[checkpoint],
        "planted": f"^{PLANTED[answers.question.kind]}",
    }
    return json.dumps(query) + "\n"


def _run(folder: Path, say: Say, *arguments: str) -> None:
    """Run one `rin` command in the folder, showing the line that a user would type."""
    say(f"\n$ rin {shlex.join(arguments)}")
    sys.stdout.flush()
    command = [sys.executable, "-m", "rapidin_cli", *arguments]
    # The same rin, wherever it was started from; -P keeps the folder's files from being imported.
    done = subprocess.run([command[0], "-P", *command[1:]], cwd=folder, env=os.environ, check=False)
    if done.returncode:
        raise RinError(
            f"`rin {shlex.join(arguments)}` failed with exit code {done.returncode}",
            hint=f"cd {folder} and run it with --debug",
        )


def _judge(folder: Path, say: Say) -> None:
    from rapidin_cli.api import Project

    report = Project.open(folder).results.load()
    say(f"\nexplore: cd {folder}; rin status; open report.html in a browser")
    for query in report["queries"]:
        kind = query["id"]
        top = query["examples"][:_TOP]
        planted = [example["id"] for example in top if planted_kind(example["id"]) == kind]
        say(
            f"{kind}: {len(planted)} of the top {len(top)} are planted rows "
            f"({PLANTED[kind]}*): {', '.join(planted)}"
        )
        if len(planted) <= len(top) // 2:
            raise RinError(
                f"only {len(planted)} of the top {len(top)} rows for {kind} are planted",
                hint="report this with the output of `rin doctor`",
            )
