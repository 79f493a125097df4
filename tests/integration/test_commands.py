"""The commands as a user types them, on a tiny project."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from rapidin_cli import Project
from tests.support import forked, tiny
from tests.support.projects import stored_rows

SCHEMA = json.loads(
    (Path(__file__).parents[2] / "rapidin_cli/report/schema.json").read_text(encoding="utf-8")
)


def rin(folder, *arguments, stdin="", **environment):
    """Run a command: in a new process where its start matters."""
    if not environment:
        return forked.rin(folder, *arguments, stdin=stdin)
    return subprocess.run(
        [sys.executable, "-m", "rapidin_cli", *map(str, arguments)],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "100", **environment},
        check=False,
    )


@pytest.fixture
def project(tmp_path):
    return tiny.project(tmp_path / "project")


@pytest.fixture
def copied(cached_project, tmp_path):
    return Path(shutil.copytree(cached_project, tmp_path / "copy"))


def test_from_init_to_report(tmp_path):
    folder = tiny.project(tmp_path / "new")
    (folder / "rin.toml").unlink()
    made = rin(folder, "init", "--yes")
    assert made.returncode == 0, made.stderr
    assert "data.jsonl" in made.stderr
    assert "adapter" in made.stderr
    text = (folder / "rin.toml").read_text()
    again = rin(folder, "init", "--yes")
    assert again.returncode == 0
    assert "nothing was changed" in again.stderr
    assert (folder / "rin.toml").read_text() == text
    assert (folder / ".rin/.gitignore").read_text().endswith("*\n")

    for command in (
        ["cache"],
        ["retrieve", "--prompt", "Where is the fox number 2?", "--generate"],
        ["report", "--html", "report.html"],
        ["status", "--exit-code"],
        ["doctor"],
    ):
        done = rin(folder, *command)
        assert done.returncode == 0, (command, done.stderr)
    assert (folder / "report.html").stat().st_mode & 0o777 == 0o600
    assert "up to date" in rin(folder, "status").stdout
    subfolder = folder / "deeper"
    subfolder.mkdir()
    assert rin(subfolder, "status").returncode == 0
    assert rin(tmp_path, "-C", folder, "status").returncode == 0


@pytest.mark.parametrize("score", ["rapidin", "cosine", "dot"])
def test_json_follows_the_schema_and_a_row_finds_itself(copied, score):
    done = rin(copied, "retrieve", "--row", "data.jsonl:7", "--score", score, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    jsonschema.validate(report, SCHEMA)
    query = report["queries"][0]
    if score != "dot":  # the plain product also rewards other rows' size
        assert query["examples"][0]["id"] == "data.jsonl:7"
    assert query["residual"] < 1e-3 * max(abs(e["score"]) for e in query["examples"])
    explained = sum(token["explained"] for token in query["tokens"])
    for example in query["examples"]:
        assert len(example["tokens"]) == explained
        assert sum(example["tokens"]) == pytest.approx(example["score"], rel=1e-2, abs=1e-3)
    assert sum(query["distribution"]["counts"]) == query["scored"] == 40
    shown = rin(copied, "report", "--json")
    assert json.loads(shown.stdout) == report


def test_all_ways_to_ask(copied):
    (copied / "queries.jsonl").write_text(
        '{"id": "one", "prompt": "Where is the cat?", "response": "In the park."}\n'
        '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]}'
    )
    done = rin(copied, "retrieve", "--queries", "queries.jsonl", "--json", "--no-tokens")
    report = json.loads(done.stdout)
    jsonschema.validate(report, SCHEMA)
    assert [query["id"] for query in report["queries"]] == ["one", "q2"]
    assert report["queries"][0]["residual"] is None
    piped = rin(
        copied, "retrieve", "-", "--json", stdin='{"prompt": "Where?", "response": "Here."}'
    )
    assert json.loads(piped.stdout)["queries"][0]["response"] == "Here."
    generated = rin(
        copied,
        "retrieve",
        "--queries",
        "queries.jsonl",
        "--generate",
        "--json",
    )
    assert generated.returncode == 4  # the second query has no prompt field
    assert "queries.jsonl:2" in generated.stderr


def test_the_terminal_report(copied):
    done = rin(copied, "retrieve", "--row", "data.jsonl:7", "--score", "rapidin")
    assert "raised" in done.stdout
    assert "lowered" in done.stdout
    assert "data.jsonl:7" in done.stdout
    assert "\x1b" not in done.stdout
    assert done.stderr.splitlines()[-1].startswith("next: rin report")
    by_token = rin(copied, "report", "--token", "2:3")
    assert "ranked by tokens 2 to 3" in by_token.stdout
    assert rin(copied, "report", "--token", "999").returncode == 2
    example = rin(copied, "report", "--example", "data.jsonl:7")
    assert "its influence on each generated token" in example.stdout
    ascii_only = rin(copied, "report", LC_ALL="C", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert ascii_only.returncode == 0, ascii_only.stderr
    head = subprocess.run(
        f"set -o pipefail; {sys.executable} -m rapidin_cli report --json | head -1",
        shell=True,
        executable="/bin/bash",
        cwd=copied,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (head.returncode, head.stderr) == (0, "")


def test_show_a_row(copied):
    facts = json.loads(rin(copied, "show", "data.jsonl:3", "--json").stdout)
    assert facts["schema"] == "rin.row/1"
    assert facts["cached"]["loss"] > 0
    assert "".join(p["text"] for p in facts["text"] if p["learnt"]).startswith("The fox")
    assert "loss" in rin(copied, "show", facts["digest"][:10]).stdout


def test_appended_rows_are_the_only_ones_computed(copied):
    before = stored_rows(copied)
    tiny.write_jsonl(copied / "data.jsonl", [*tiny.rows(50)[::-1], tiny.rows(1)[0]])
    status = json.loads(rin(copied, "status", "--json").stdout)
    assert (status["up_to_date"], status["checkpoints"][0]["missing"]) == (False, 10)
    assert rin(copied, "status", "--exit-code").returncode == 1
    assert "10 rows to compute (40 cached)" in rin(copied, "cache", "--dry-run").stderr
    done = rin(copied, "cache")
    assert "10 rows computed, 50 cached, 1 duplicate" in done.stderr
    after = stored_rows(copied)
    assert len(after) == 50
    assert all(after[digest] == row for digest, row in before.items())
    assert "0 rows computed" in rin(copied, "cache").stderr
    tiny.write_jsonl(copied / "data.jsonl", tiny.rows(30))
    assert "20 cached rows are no longer in the data" in rin(copied, "status").stdout
    report = json.loads(rin(copied, "retrieve", "--row", "data.jsonl:3", "--json").stdout)
    assert report["queries"][0]["scored"] == 30


def test_rows_that_share_a_digest_are_one_example(copied):
    tiny.write_jsonl(copied / "data.jsonl", [*tiny.rows(40), tiny.rows(10)[6]])
    done = rin(copied, "retrieve", "--row", "data.jsonl:7", "--score", "rapidin", "--json")
    report = json.loads(done.stdout)
    first = report["queries"][0]["examples"][0]
    assert [row["line"] for row in first["rows"]] == [7, 41]


@pytest.mark.parametrize("precision", ["float16", "sign"])
def test_other_precisions_agree(tmp_path, cached_project, precision):
    folder = tiny.project(tmp_path / "project", precision=precision, dimensions=2048)
    Project.open(folder).cache()
    ask = ("retrieve", "--row", "data.jsonl:7", "--no-tokens", "--top", 40, "--json")
    scores = []
    for place in (folder, Path(shutil.copytree(cached_project, tmp_path / "int8"))):
        report = json.loads(rin(place, *ask).stdout)
        scores.append({e["id"]: e["score"] for e in report["queries"][0]["examples"]})
    ids = sorted(scores[0])
    values = np.array([[s[i] for i in ids] for s in scores])
    assert np.corrcoef(values)[0, 1] > (0.999 if precision == "float16" else 0.9)


def test_the_paper_s_sketch_answers_rapidin_with_tokens(tmp_path):
    folder = tiny.project(tmp_path / "project", sketch="oporp", dimensions=4096)
    Project.open(folder).cache()
    done = rin(folder, "retrieve", "--row", "data.jsonl:7", "--json")
    query = json.loads(done.stdout)["queries"][0]
    assert query["examples"][0]["id"] == "data.jsonl:7"
    assert query["residual"] < 1e-3
    refused = rin(folder, "retrieve", "--row", "data.jsonl:7", "--score", "dot")
    assert refused.returncode == 2
    assert "only the score rapidin" in refused.stderr


def test_the_python_api(copied):
    from rapidin_cli import Options, Question

    report = Project.open(copied).retrieve(
        [Question("q1", prompt="Where is the cat?", response="In the park.")],
        Options(score="cosine", top=3),
    )
    jsonschema.validate(report, SCHEMA)


BAD = [
    (["status"], {"rin.toml": None}, 3, "rin init"),
    (["status"], {"rin.toml": "[data"}, 4, "rin.toml"),
    (["cache"], {"data.jsonl": "{"}, 4, "data.jsonl:1"),
    (["cache"], {"data.jsonl": None}, 4, "cannot read data.jsonl"),
    (["cache", "nobody"], {}, 4, "no checkpoint 'nobody'"),
    (["cache", "--devices", "cuda:9"], {"data.jsonl": "one more"}, 1, "no device 'cuda:9'"),
    (["cache", "--workers", "0"], {}, 2, "--workers"),
    (["retrieve"], {}, 2, "exactly one way"),
    (["retrieve", "--prompt", "x"], {}, 2, "--generate"),
    (["retrieve", "--response", "x"], {}, 2, "exactly one way"),
    (["retrieve", "--prompt", "x", "--response", ""], {}, 4, "no token to explain"),
    (["retrieve", "--row", "nobody"], {}, 4, "no training row"),
    (["retrieve", "--row", "data.jsonl:1", "--score", "magic"], {}, 2, "no score 'magic'"),
    (["retrieve", "--queries", "gone.jsonl"], {}, 4, "gone.jsonl"),
    (
        ["retrieve", "--row", "data.jsonl:1"],
        {".rin/format.json": '{"format": 1}'},
        5,
        "format.json",
    ),
    (["report"], {}, 5, "rin retrieve"),
    (["show", "nobody"], {}, 4, "no training row"),
    (["status"], {"adapter/adapter_config.json": "{"}, 0, "adapter_config.json"),
    (["cache"], {"adapter/adapter_model.safetensors": None}, 4, "has no adapter_model.safetensors"),
    (["frobnicate"], {}, 2, "frobnicate"),
    (["-C", "nowhere", "status"], {}, 2, "nowhere"),
    (["doctor"], {"rin.toml": '[storage]\nroot = "gone://x"'}, 1, "gone"),
]


@pytest.mark.parametrize(("command", "changes", "code", "said"), BAD)
def test_bad_input_gets_a_sentence_and_an_exit_code(copied, command, changes, code, said):
    for name, content in changes.items():
        path = copied / name
        if content is None:
            path.unlink()
        elif content == "one more":
            tiny.write_jsonl(path, tiny.rows(41))
        else:
            path.write_text(content)
    done = rin(copied, *command)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert said in done.stderr + done.stdout
    if code not in (0, 2) and command != ["doctor"]:
        assert "\nnext:" in done.stderr
    if code and command != ["doctor"]:  # which prints its findings
        assert done.stdout == ""


def test_damaged_rows_are_named(copied):
    opened = Project.open(copied).opened()
    snapshot = opened.cache.snapshot()
    ref = snapshot.manifest.chunk(0)["sketch"]
    path = copied / ".rin/objects/sha256" / ref.digest[:2] / ref.digest
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    done = rin(copied, "retrieve", "--row", "data.jsonl:7")
    assert done.returncode == 5
    assert ref.digest in done.stderr
    assert "sketch/c/0" in done.stderr


def test_a_gradient_that_is_not_finite_is_never_cached(project):
    path = project / "adapter/adapter_model.safetensors"
    tensors = load_file(path)
    name = next(iter(tensors))
    save_file({**tensors, name: tensors[name] * float("inf")}, path)
    done = rin(project, "cache")
    assert done.returncode == 4
    assert "not finite" in done.stderr
    assert "float32" in done.stderr
    assert Project.open(project).opened().cache.snapshot() is None


def test_a_template_that_a_query_cannot_fill_is_named(copied):
    text = (copied / "rin.toml").read_text()
    (copied / "rin.toml").write_text(text.replace('"chat"', '"{prompt} {colour}"'))
    for command in (["cache"], ["cache", "--skip-bad"]):
        done = rin(copied, *command)
        assert done.returncode == 4
        assert "Traceback" not in done.stderr


def test_skip_bad_goes_on_and_lists_them(copied):
    with (copied / "data.jsonl").open("a") as file:
        file.write("nonsense\n")
    assert rin(copied, "cache").returncode == 4
    done = rin(copied, "cache", "--skip-bad")
    assert done.returncode == 0
    assert "skipped data.jsonl:41: broken JSON" in done.stderr
    asked = rin(copied, "retrieve", "--row", "data.jsonl:7")
    assert "1 unusable rows were skipped" in asked.stderr


def test_hostile_rows_do_not_reach_the_terminal(copied):
    nasty = {"prompt": "Say \u001b]52;c;AAAA\u0007", "response": "\u202eevil [bold]x[/bold] [/foo]"}
    tiny.write_jsonl(copied / "data.jsonl", [*tiny.rows(40), nasty])
    assert rin(copied, "cache").returncode == 0
    done = rin(copied, "retrieve", "--row", "data.jsonl:41")
    assert done.returncode == 0, done.stderr
    for character in ("\x1b", "\x07", "\u202e"):
        assert character not in done.stdout
    assert "⟨U+001B⟩" in done.stdout
    assert "[bold]x[/bold]" in done.stdout
