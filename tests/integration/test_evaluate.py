"""`rin evaluate` on a tiny project: real trainings, remembered."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

from rapidin_cli import Project
from rapidin_cli.evaluation.training import losses
from rapidin_cli.evaluation.unlearning import Ascent, Unlearner
from rapidin_cli.gradients.passes import as_batch
from tests.support import tiny
from tests.support.examples import EXAMPLES
from tests.support.forked import rin

QUERIES = [
    {"id": "a", "prompt": "Where is the cat number 0?", "response": "The cat number 0 walks."},
    {"id": "b", "prompt": "Where is the dog number 1?", "response": "The dog number 1 walks."},
]
TRAINER = """
import json, shutil, sys
rows = [json.loads(line) for line in open(sys.argv[1])]
assert all("prompt" in row for row in rows)
open("seen.txt", "a").write(f"{len(rows)} {sys.argv[3]}\\n")
shutil.copytree("adapter", sys.argv[2])
"""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tiny.project(tmp_path_factory.mktemp("evaluated"), 16)
    with (folder / "rin.toml").open("a") as stream:
        stream.write("[evaluate]\nepochs = 1\nlearning_rate = 0.01\n")
    tiny.write_jsonl(folder / "queries.jsonl", QUERIES)
    Project.open(folder).cache()
    return folder


@pytest.fixture
def copied(prepared, tmp_path):
    return Path(shutil.copytree(prepared, tmp_path / "copy"))


def evaluated(folder, *arguments):
    done = rin(folder, "evaluate", *arguments, "--queries", "queries.jsonl", "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_planted_rows_are_ranked(copied):
    found = evaluated(copied, "retrieval", "--planted", r":(1|13|2|14)$", "--top", "4")
    assert [score["name"] for score in found["scores"]] == [
        "rapidin", "dot", "cosine", "gram", "bm25", "random",
    ]  # fmt: skip
    for score in found["scores"]:
        for measure in score["measures"]:
            assert 0 <= measure["low"] <= measure["mean"] <= measure["high"] <= 1
    assert found["planted"] == 0.25
    page = copied / "page.html"
    shown = rin(
        copied, "evaluate", "retrieval", "--queries", "queries.jsonl", "--planted", ":1$",
        "--html", page,
    )  # fmt: skip
    assert "auROC" in shown.stdout
    assert "<svg" in page.read_text()
    nothing = rin(
        copied, "evaluate", "retrieval", "--queries", "queries.jsonl", "--planted", "sheep"
    )
    assert nothing.returncode == 4
    assert "the data has none of the rows planted" in nothing.stderr
    unsaid = rin(copied, "evaluate", "retrieval", "--queries", "queries.jsonl")
    assert unsaid.returncode == 4


def test_halves_are_trained_on_once(copied):
    ways = ["lds", "--subsets", "4", "--scores", "dot,random"]
    found = evaluated(copied, *ways)
    assert found["trainings"] == 4
    memory = next((copied / ".rin/evaluations").glob("*.jsonl"))
    before = memory.read_text()
    assert len(before.splitlines()) == 4
    memory.write_text(before[:-20])  # as a kill in the middle of a line leaves it
    again = evaluated(copied, *ways, "--exact")
    assert len(memory.read_text().splitlines()) == 5  # the cut-off line, and it once more
    names = [score["name"] for score in again["scores"]]
    assert names == ["dot", "random"]
    assert again["scores"][1] == found["scores"][1]


def test_what_is_left_out_is_what_a_score_names(copied):
    found = evaluated(
        copied, "counterfactual", "--top", "3", "--repeats", "2", "--scores", "dot,bm25"
    )
    assert [score["name"] for score in found["scores"]] == ["dot", "bm25", "random"]
    assert found["trainings"] == 1 + 2 + 2 * 2
    for score in found["scores"]:
        assert len(score["measures"][0]["values"]) == 2


def test_a_step_uphill_is_that_of_the_gradients_signs():
    model = tiny.lora(tiny.llama())
    trained = [p for p in model.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in trained]
    unlearnt, others = EXAMPLES[:2], EXAMPLES[2:]
    found = Unlearner(model, Ascent(steps=1, rate=1e-3)).rises(unlearnt, others)
    assert all(torch.equal(p, value) for p, value in zip(trained, before, strict=True))
    start = losses(model, others)
    for item in unlearnt:  # the gradient of a sum is the sum of the gradients
        batch = as_batch([item])
        logits = model(input_ids=batch.input_ids).logits[0, :-1]
        torch.nn.functional.cross_entropy(logits, batch.labels[0, 1:], reduction="sum").backward()
    with torch.no_grad():
        for parameter in trained:
            parameter += 1e-3 * parameter.grad.sign()
    expected = [b - a for a, b in zip(start, losses(model, others), strict=True)]
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_what_is_unlearnt_is_what_the_query_needed(copied):
    found = evaluated(copied, "unlearn", "--top", "2", "--repeats", "2", "--scores", "dot,unlearn")
    assert [score["name"] for score in found["scores"]] == ["dot", "unlearn", "random"]
    means = {score["name"]: score["measures"][0]["mean"] for score in found["scores"]}
    assert means["dot"] > means["random"]
    assert means["unlearn"] > means["random"]
    shown = rin(copied, "evaluate", "unlearn", "--queries", "queries.jsonl", "--scores", "unlearn")
    assert shown.returncode == 0, shown.stderr
    assert "trains nothing anew" in shown.stderr
    ranked = evaluated(
        copied, "retrieval", "--planted", r":(1|2)$", "--top", "4", "--scores", "unlearn,random"
    )
    areas = {s["name"]: s["measures"][1]["mean"] for s in ranked["scores"]}
    assert areas["unlearn"] > areas["random"]


def test_the_users_own_training_command(copied):
    (copied / "train.py").write_text(TRAINER)
    text = (copied / "rin.toml").read_text()
    command = f"{sys.executable} train.py {{data}} {{output}} {{seed}}"
    (copied / "rin.toml").write_text(
        text.replace("[evaluate]\n", f'[evaluate]\ncommand = "{command}"\n')
    )
    evaluated(copied, "lds", "--subsets", "3", "--scores", "dot")
    assert (copied / "seen.txt").read_text() == "8 0\n" * 3
    (copied / "train.py").write_text("raise SystemExit('no GPU is free')")
    failed = rin(
        copied, "evaluate", "lds", "--queries", "queries.jsonl", "--subsets", "5", "--scores", "dot"
    )
    assert failed.returncode == 1
    assert "no GPU is free" in failed.stderr


def test_mistakes_are_named(copied):
    for arguments, code, why in (
        (["lds", "--queries", "queries.jsonl", "--scores", "sheep"], 2, "no score 'sheep'"),
        (["lds", "--queries", "nothing.jsonl"], 4, "nothing.jsonl"),
        (
            ["counterfactual", "--queries", "queries.jsonl", "--top", "99", "--scores", "dot"],
            2,
            "there are only 16 examples",
        ),
    ):
        done = rin(copied, "evaluate", *arguments)
        assert (done.returncode, why in done.stderr) == (code, True), done.stderr
