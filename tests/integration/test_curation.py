"""From a report to action: the training data without what was found."""

import csv
import json
import shutil
from pathlib import Path

import pytest

from rapidin_cli.report.span import Span
from rapidin_cli.report.tables import ranked
from tests.support import forked, tiny

EVERYTHING = Span(0, 0, everything=True)


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def asked(cached_project, tmp_path_factory):
    """A cached project with a result; one row of the data stands there twice."""
    folder = Path(shutil.copytree(cached_project, tmp_path_factory.mktemp("curation") / "project"))
    row = tiny.rows(40)[3]
    with (folder / "data.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({**row, "note": "kept as it is", "id": "copy"}) + "\n")
    done = forked.rin(
        folder, "retrieve", "--prompt", row["prompt"], "--response", row["response"],
        "--score", "cosine", "--exact", "0", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout)


@pytest.fixture
def project(asked, tmp_path):
    return Path(shutil.copytree(asked[0], tmp_path / "project"))


@pytest.fixture
def report(asked):
    return asked[1]


def best(report, side, top):
    """Places (from 0) in the data of the best examples, copies included."""
    examples = ranked(report["queries"][0], EVERYTHING)[side][:top]
    return {row["line"] - 1 for example in examples for row in example["rows"]}


def test_what_was_found_is_left_out_and_the_rest_is_as_it_was(project, report):
    done = forked.rin(project, "export", "--drop", "latest", "--top", "3", "--out", "cleaned.jsonl")
    assert done.returncode == 0, done.stderr
    before = lines(project / "data.jsonl")
    gone = best(report, "raised", 3)
    assert {3, 40} <= gone  # the query's own row and its copy
    assert lines(project / "cleaned.jsonl") == [r for n, r in enumerate(before) if n not in gone]
    assert f"{41 - len(gone)} rows, {len(gone)} left out" in done.stderr


def test_only_what_was_found_is_written(project, report):
    chosen = ("--only", report["id"], "--top", "2", "--side", "both")
    done = forked.rin(project, "export", *chosen, "--out", "found.jsonl")
    assert done.returncode == 0, done.stderr
    wanted = best(report, "raised", 2) | best(report, "lowered", 2)
    before = lines(project / "data.jsonl")
    assert lines(project / "found.jsonl") == [r for n, r in enumerate(before) if n in wanted]
    assert any(row.get("note") == "kept as it is" for row in lines(project / "found.jsonl"))


def test_found_rows_get_a_weight(project, report):
    chosen = ("--weigh", "latest", "--top", "3", "--weight", "0.25")
    assert forked.rin(project, "export", *chosen, "--out", "weighted.jsonl").returncode == 0
    found = best(report, "raised", 3)
    weights = [row["weight"] for row in lines(project / "weighted.jsonl")]
    assert weights == [0.25 if n in found else 1.0 for n in range(41)]
    weighted = (project / "weighted.jsonl").read_bytes()
    (project / "data.jsonl").write_bytes(weighted)
    again = forked.rin(project, "export", *chosen, "--out", "twice.jsonl")
    assert again.returncode == 4
    assert "already has a field 'weight'" in again.stderr
    assert not (project / "twice.jsonl").exists()


def test_a_review_list_is_edited_and_read_back(project, report):
    done = forked.rin(project, "export", "--review", "latest", "--top", "3", "--out", "review.csv")
    assert done.returncode == 0, done.stderr
    with (project / "review.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {int(row["line"]) - 1 for row in rows} == best(report, "raised", 3)
    assert {row["decision"] for row in rows} == {"keep"}
    assert [int(row["rank"]) for row in rows] == sorted(int(row["rank"]) for row in rows)
    dropped = [row for row in rows if row["line"] != "4"]
    for row in dropped:
        row["decision"] = " Drop "
    with (project / "review.csv").open("w", encoding="utf-8-sig", newline="") as file:
        # As a spreadsheet saves it: a mark at its head, and all columns.
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    chosen = ("--reviewed", "review.csv", "--out", "cleaned.jsonl")
    assert forked.rin(project, "export", *chosen).returncode == 0
    gone = {int(row["line"]) - 1 for row in dropped}
    before = lines(project / "data.jsonl")
    assert lines(project / "cleaned.jsonl") == [r for n, r in enumerate(before) if n not in gone]


def test_data_that_has_changed_is_refused(project):
    data = project / "data.jsonl"
    text = data.read_text(encoding="utf-8")
    for changed in (text.split("\n", 1)[1], "", text.replace(text.splitlines()[3], "{broken")):
        data.write_text(changed, encoding="utf-8")
        done = forked.rin(project, "export", "--drop", "latest", "--out", "cleaned.jsonl")
        assert done.returncode == 4
        assert "is not the row that was scored: the data has changed since" in done.stderr
        assert not (project / "cleaned.jsonl").exists()


def test_a_row_is_read_in_the_shape_of_its_file(project):
    """A field of another shape, which the reader of the data does not look at, is no change."""
    lines_ = (project / "data.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines_]
    rows[3]["messages"] = []
    tiny.write_jsonl(project / "data.jsonl", rows)
    done = forked.rin(project, "export", "--only", "latest", "--top", "3", "--out", "only.jsonl")
    assert done.returncode == 0, done.stderr
    assert rows[3] in lines(project / "only.jsonl")


def test_lines_that_are_no_rows_are_named_and_half_pairs_survive(project):
    with (project / "data.jsonl").open("a", encoding="utf-8") as file:
        file.write('{broken\n[1]\n{"prompt": "half \\ud800", "response": "x"}\n')
    done = forked.rin(project, "export", "--drop", "latest", "--top", "1", "--out", "cleaned.jsonl")
    assert done.returncode == 0, done.stderr
    assert "could not write 2 lines of the data without a JSON object" in done.stderr
    assert "data.jsonl:42" in done.stderr
    assert lines(project / "cleaned.jsonl")[-1]["prompt"] == "half \ud800"


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        ((), 2, "say what to write in exactly one way"),
        (("--drop", "latest", "--only", "latest"), 2, "exactly one way"),
        (("--drop", "latest"), 2, "--drop needs --out FILE"),
        (("--drop", "ffffff", "--out", "new.jsonl"), 5, "no saved result has an id"),
        (("--drop", "latest", "--side", "up", "--out", "new.jsonl"), 2, "no side 'up'"),
        (("--drop", "latest", "--query", "q9", "--out", "new.jsonl"), 4, "no query 'q9'"),
        (("--drop", "latest", "--out", "data.jsonl"), 4, "data.jsonl already exists"),
        (("--review", "latest", "--out", "data.jsonl"), 4, "data.jsonl already exists"),
        (("--drop", "latest", "--out", "no/such/folder.jsonl"), 4, "cannot write"),
        (("--reviewed", "data.jsonl", "--out", "new.jsonl"), 4, "not a review list"),
        (("--reviewed", "nothing.csv", "--out", "new.jsonl"), 4, "cannot read"),
    ],
)
def test_what_cannot_be_done_is_said_and_changes_nothing(project, arguments, code, told):
    before = (project / "data.jsonl").read_bytes()
    done = forked.rin(project, "export", *arguments)
    assert told in done.stderr.replace("\n", " ")
    assert "next:" in done.stderr
    assert done.returncode == code
    assert (project / "data.jsonl").read_bytes() == before
    assert not (project / "new.jsonl").exists()
