"""An answer in stages: ranked by cached rows, then scored exactly for as long as there is time."""

import json
import socket
import subprocess
import sys

import jsonschema
import numpy as np
import pytest

from rapidin_cli import Options, Project, Question
from rapidin_cli.commands import main as command_line
from rapidin_cli.gradients import memory
from rapidin_cli.influence import answering, refinement
from rapidin_cli.report import terminal
from tests.support.asked import PROMPT, RESPONSE, SCHEMA, by_digest
from tests.support.forked import rin

ASKED = Question("q1", prompt=PROMPT, response=RESPONSE)
LINE = {"prompt": PROMPT, "response": RESPONSE}


class Clock:
    """A clock that goes on by a second whenever it is asked."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        self.now += 1
        return self.now


@pytest.fixture
def slow(monkeypatch):
    """Exact scores take so long that `within` ends them, in steps of single rows."""
    clock = Clock()
    monkeypatch.setattr(answering, "time", clock)
    monkeypatch.setattr(refinement, "time", clock)
    monkeypatch.setattr(refinement, "_STEP_SECONDS", 1.0)


def exact_of(query):
    return [example for example in query["examples"] if example["sketched"] is not None]


def test_the_ranking_by_cached_rows_comes_first(prepared):
    rankings, stages = [], []
    report = Project.open(prepared).retrieve(
        [ASKED],
        Options(score="dot"),
        ranked=rankings.append,
        progress=lambda what, *_: stages.append(what),
    )
    (ranking,) = rankings
    jsonschema.validate(ranking, SCHEMA)
    assert ranking["queries"][0]["exact"] is None
    assert all(example["training"] is None for example in ranking["queries"][0]["examples"])
    assert list(dict.fromkeys(stages)) == [
        "ranking by cached rows",
        "gradients of the answer's tokens",
        "exact scores",
        "tokens of the rows shown",
    ]
    assert len(exact_of(report["queries"][0])) == len(report["queries"][0]["examples"])
    # The prepared rows hold whole gradients: their ranking is the exact one, but for rounding.
    sketched, exact = by_digest(ranking), by_digest(report)
    for digest in sketched.keys() & exact.keys():
        assert sketched[digest]["score"] == pytest.approx(exact[digest]["score"], rel=0.05)


@pytest.mark.usefixtures("slow")
def test_time_is_given_to_the_likeliest_and_what_is_left_is_told(prepared):
    project = Project.open(prepared)
    whole = project.retrieve([ASKED], Options(score="dot", exact=4))["queries"][0]
    report = project.retrieve([ASKED], Options(score="dot", within=20.0), command="rin retrieve x")
    jsonschema.validate(report, SCHEMA)
    query = report["queries"][0]
    scored = exact_of(query)
    assert 2 <= query["exact"]["shortlist"] == len(scored) < len(query["examples"])
    assert query["exact"]["doubtful"] > 0
    assert report["provenance"]["example_seconds"] > 0
    known = {example["digest"]: example for example in whole["examples"]}
    totals = sorted(abs(example["score"]) for example in whole["examples"])
    for example in scored:
        assert example["score"] == pytest.approx(known[example["digest"]]["score"], rel=1e-4)
        assert example["tokens"] == pytest.approx(known[example["digest"]]["tokens"], abs=1e-3)
        assert example["tokens_exact"]
    strongest = [known[e["digest"]]["score"] for e in scored]
    assert max(map(abs, strongest)) == pytest.approx(totals[-1], rel=1e-4)
    told = " ".join(rin(prepared, "report", report["id"]).stdout.split())
    assert "~ marks a score that is still a sketch's" in told
    assert f"{query['exact']['doubtful']} more may be among the best: rin retrieve x" in told
    assert told.count("~") > 1


def test_an_answer_does_not_depend_on_how_fast_it_was_found(prepared, monkeypatch):
    """Whatever goes into a step, scores are the same to the bit, and so is the result's name."""
    project, options = Project.open(prepared), Options(score="dot")
    expected = project.retrieve([ASKED], options)
    monkeypatch.setattr(refinement, "_STEP_EXAMPLES", 3)
    monkeypatch.setattr(memory, "room_left", lambda _: 2**40)
    again = project.retrieve([ASKED], options)
    assert again["queries"] == expected["queries"]
    assert again["id"] == expected["id"]


def test_no_time_is_no_exact_score(prepared):
    asked = "--prompt", PROMPT, "--response", RESPONSE
    done = rin(prepared, "retrieve", *asked, "--within", "0", "--json")
    assert json.loads(done.stdout)["queries"][0]["exact"] is None
    refused = rin(prepared, "retrieve", *asked, "--within", "soon")
    assert refused.returncode == 2
    assert "--within soon is not a time" in refused.stderr


@pytest.mark.usefixtures("slow")
@pytest.mark.parametrize(("stage", "after"), [("exact scores", 2), ("tokens of the rows shown", 1)])
def test_an_interruption_keeps_and_saves_what_is_there(prepared, monkeypatch, capsys, stage, after):
    """Ctrl-C in the middle of a stage, as the command meets it."""
    make, reached = refinement.Refinement.__init__, []

    def watched(self, panel, query, found, examples, options, progress, *rest):
        def interrupt(what, done, total):
            progress(what, done, total)
            if what == stage:
                reached.append(done)
                if len(reached) == after:
                    raise KeyboardInterrupt

        make(self, panel, query, found, examples, options, interrupt, *rest)

    monkeypatch.setattr(refinement.Refinement, "__init__", watched)
    monkeypatch.chdir(prepared)
    words = ["retrieve", "--prompt", PROMPT, "--response", RESPONSE, "--json", "--within", "9"]
    monkeypatch.setattr(sys, "argv", ["rin", *words])
    with pytest.raises(SystemExit) as ended:
        command_line.main()
    assert ended.value.code == 130
    assert len(reached) == after
    report = json.loads(capsys.readouterr().out)
    jsonschema.validate(report, SCHEMA)
    assert report["interrupted"]
    assert report["warnings"][0] == "interrupted: this is what was known by then"
    assert exact_of(report["queries"][0])
    assert json.loads(rin(prepared, "report", report["id"], "--json").stdout)["id"] == report["id"]


def test_questions_that_were_not_reached_are_counted(prepared):
    questions = [ASKED, Question("q2", prompt=PROMPT, response="It sleeps.")]
    seen = []

    def interrupt(what, *_):
        seen.append(what)
        if seen.count("tokens of the rows shown") == 1:
            raise KeyboardInterrupt

    report = Project.open(prepared).retrieve(questions, Options(score="dot"), progress=interrupt)
    assert [query["id"] for query in report["queries"]] == ["q1"]
    assert "1 of 2 questions were not answered" in report["warnings"]


def asks(folder, stdin, stdout=subprocess.PIPE):
    return subprocess.Popen(
        [sys.executable, "-m", "rapidin_cli", "retrieve", "-", "--json", "--exact", "0"],
        cwd=folder, stdin=stdin, stdout=stdout, stderr=subprocess.PIPE,
    )  # fmt: skip


def test_each_line_of_a_pipe_is_answered_before_the_next(prepared):
    process = asks(prepared, subprocess.PIPE)

    def answer(line):
        process.stdin.write(line + b"\n")
        process.stdin.flush()
        return json.loads(process.stdout.readline())

    first = answer(json.dumps({**LINE, "id": "mine"}).encode())
    jsonschema.validate(first, SCHEMA)
    assert first["queries"][0]["id"] == "mine"
    broken = answer(b'{"prompt": ')
    assert (broken["schema"], broken["line"]) == ("rin.error/1", 2)
    assert broken["error"].startswith("stdin:2: not JSON")
    assert answer(b'{"prompt": "\xff"}')["error"] == "stdin:3: not UTF-8 text"
    assert answer(b'{"text": 3}')["error"].startswith("stdin:4:")
    again = answer(json.dumps(LINE).encode())
    assert again["queries"][0]["examples"] == first["queries"][0]["examples"]
    out, told = process.communicate(timeout=60)
    assert out == b""
    assert process.returncode == 4
    assert "3 lines of stdin could not be answered (of 5)" in told.decode()


def test_lines_come_through_a_socket_too(prepared):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        process = asks(prepared, theirs, theirs)
        ours.sendall(json.dumps(LINE).encode() + b"\n")
        answered = json.loads(ours.makefile("rb").readline())
        assert answered["queries"][0]["response"] == RESPONSE
        ours.shutdown(socket.SHUT_WR)
        assert process.wait(60) == 0
        process.stderr.close()


def test_nothing_on_stdin_is_refused(prepared):
    done = rin(prepared, "retrieve", "-", stdin="\n")
    assert done.returncode == 4
    assert "stdin has no queries" in done.stderr


def test_lines_have_no_dry_run(prepared):
    done = rin(prepared, "retrieve", "-", "--dry-run", stdin=json.dumps(LINE))
    assert done.returncode == 2
    assert "--dry-run needs a question" in done.stderr


def test_a_result_that_was_asked_from_python_names_no_command():
    settled = terminal.settling(3, {"example_seconds": 1.0, "command": ""})
    assert settled == "a longer `within`, such as 10s, settles that"
    command = "rin retrieve - --exact=2 --within 5s --top 3"
    settled = terminal.settling(30, {"example_seconds": 1.0, "command": command})
    assert settled == "rin retrieve - --top 3 --within 80s settles that"


def test_a_dry_run_says_what_a_question_would_take(prepared):
    asked = "retrieve", "--prompt", PROMPT, "--response", RESPONSE, "--dry-run"
    done = rin(prepared, *asked)
    assert done.returncode == 0
    assert done.stdout == ""
    told = " ".join(done.stderr.split())
    assert "24 rows to rank" in told
    assert "of the likeliest in 20 s" in told
    assert "of memory" in told
    assert "80 rows or more" in rin(prepared, *asked, "--exact", "4").stderr
    assert "exact scores" not in rin(prepared, *asked, "--exact", "0").stderr
    saved = set((prepared / ".rin/results").glob("*"))
    rin(prepared, *asked)
    assert set((prepared / ".rin/results").glob("*")) == saved


def test_many_questions_leave_nothing_behind(prepared):
    """A session keeps no gradient of an answered question."""
    session = Project.open(prepared).session()
    options = Options(score="dot", top=2, token_top=1)
    session.retrieve([ASKED], options)
    panel = session._asking._panel
    for number in range(3):
        session.retrieve([Question(f"q{number}", prompt=PROMPT, response="It sleeps.")], options)
        assert panel._asked == {}


def test_likeliest_first():
    totals = np.array([3.0, -9.0, np.nan, 8.0, 0.5, -1.0])
    assert refinement._strongest(totals, 2).tolist() == [3, 1, 0, 5]


def test_where_gradients_of_tokens_do_not_fit_the_scores_are_the_same(prepared, monkeypatch):
    """Then tokens are scored by forward mode, of the rows that are shown; and one row at a time."""
    project, options = Project.open(prepared), Options(score="dot", top=3, token_top=2)
    expected = by_digest(project.retrieve([ASKED], options))
    monkeypatch.setattr(memory, "room_left", lambda _: 1)
    report = project.retrieve([ASKED], options)
    jsonschema.validate(report, SCHEMA)
    found = by_digest(report)
    shown = [e for e in report["queries"][0]["examples"] if e["tokens_exact"]]
    assert len(shown) >= 6
    for example in shown:
        known = expected[example["digest"]]
        assert found[example["digest"]]["score"] == pytest.approx(known["score"], rel=1e-4)
        scale = sum(map(abs, known["tokens"]))
        assert example["tokens"] == pytest.approx(known["tokens"], abs=1e-4 * scale)
        ours, theirs = ([score for _, score in e["training"]] for e in (example, known))
        assert ours == pytest.approx(theirs, abs=1e-4 * scale)
