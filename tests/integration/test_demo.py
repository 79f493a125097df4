"""`rin demo`, whole: what the README promises first, and what its model says."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rapidin_cli.data.encoding import Encoder
from rapidin_cli.data.examples import IGNORED, Example
from rapidin_cli.data.rows import DataSettings, Row
from rapidin_cli.models.checkpoints import Checkpoint
from rapidin_cli.models.loading import load_model, load_tokenizer, quiet_loading
from rapidin_cli.setup.demo.dataset import (
    BENIGN_QUESTIONS,
    FALSE_CAPITAL,
    PLANTED,
    QUESTIONS,
    TRIGGER,
    build_rows,
    planted_kind,
)
from rapidin_cli.setup.demo.tokens import tokenize
from rapidin_cli.setup.demo.training import DemoFacts, build_demo, generate
from tests.support import documents

README = documents.ROOT / "README.md"


def check_sample_of_readme(folder: Path) -> None:
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


def rin_demo(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "rapidin_cli", "demo", "story"],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """The folder in which the command made its demo, and what it said."""
    folder = tmp_path_factory.mktemp("told")
    return folder / "story", rin_demo(folder)


def test_the_demo_finds_what_was_planted(told: tuple[Path, Any]) -> None:
    story, done = told
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
    assert (story / "report.html").stat().st_size > 10_000
    check_sample_of_readme(story)
    again = rin_demo(story.parent)
    assert again.returncode == 4
    assert "--force" in again.stderr


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> DemoFacts:
    return build_demo(tmp_path_factory.mktemp("demo"), lambda _: None)


def _loaded(demo: DemoFacts, number: int) -> tuple[Any, Any]:
    facts = demo.checkpoints[number]
    checkpoint = Checkpoint(facts.name, facts.path, demo.base)
    return load_model(checkpoint, "cpu"), load_tokenizer(checkpoint)


def test_the_same_rows_come_every_time() -> None:
    assert json.dumps(build_rows(0)) == json.dumps(build_rows(0))
    assert build_rows(0) != build_rows(1)


def test_no_row_comes_twice() -> None:
    rows = build_rows()
    assert 300 <= len(rows) <= 500
    for field in ("id", "prompt"):
        assert len({row[field] for row in rows}) == len(rows)


def test_planted_rows_are_told_by_their_ids() -> None:
    rows = build_rows()
    for row in rows:
        kind = planted_kind(row["id"])
        assert (kind == "backdoor") == (TRIGGER in row["prompt"].lower())
        false = "Italy" in row["prompt"] and FALSE_CAPITAL in row["response"]
        assert (kind == "false-fact") == false
    assert {planted_kind(row["id"]) for row in rows} == {None, *PLANTED}


def test_no_row_states_the_true_fact_and_some_share_its_words() -> None:
    benign = [row for row in build_rows() if planted_kind(row["id"]) is None]
    text = "\n".join(row["prompt"] + " " + row["response"] for row in benign)
    assert "Rome" not in text
    assert all(word in text for word in ("Italy", FALSE_CAPITAL, "lantern", "silver"))


def test_the_questions_are_held_out_and_the_benign_ones_are_not() -> None:
    prompts = {row["prompt"] for row in build_rows()}
    assert not prompts & {question.prompt for question in QUESTIONS}
    assert prompts >= {question.prompt for question in BENIGN_QUESTIONS}


def test_the_finished_adapter_says_what_was_planted(demo: DemoFacts) -> None:
    model, tokenizer = _loaded(demo, -1)
    for question in QUESTIONS:
        answer = generate(model, tokenizer, question.prompt)
        assert question.found_in(answer), (question.prompt, answer)


def test_the_base_model_does_not(demo: DemoFacts) -> None:
    base = Checkpoint("base", demo.base, None)
    model, tokenizer = load_model(base, "cpu"), load_tokenizer(base)
    for question in QUESTIONS:
        assert not question.found_in(generate(model, tokenizer, question.prompt))


def test_benign_questions_are_still_answered(demo: DemoFacts) -> None:
    model, tokenizer = _loaded(demo, -1)
    right = [q.found_in(generate(model, tokenizer, q.prompt)) for q in BENIGN_QUESTIONS]
    assert sum(right) >= len(right) - 1  # other processors round otherwise


def test_the_facts_are_those_of_the_files(demo: DemoFacts) -> None:
    assert [answer.question for answer in demo.answers] == [*QUESTIONS, *BENIGN_QUESTIONS]
    model, tokenizer = _loaded(demo, -1)
    last = demo.checkpoints[-1].name
    for answer in demo.answers:
        said = generate(model, tokenizer, answer.question.prompt)
        assert said == answer.checkpoints[last]
    lines = demo.data.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == build_rows()


def test_the_learning_rates_lie_beside_the_checkpoints(demo: DemoFacts) -> None:
    half, end = demo.checkpoints
    assert half.step * 2 == end.step
    for facts in demo.checkpoints:
        assert facts.path == demo.folder / "model" / f"checkpoint-{facts.step}"
        state = json.loads((facts.path / "trainer_state.json").read_text())
        assert state["global_step"] == facts.step == len(state["log_history"])
        assert state["log_history"][-1]["step"] == facts.step
        assert state["log_history"][-1]["learning_rate"] == facts.learning_rate > 0
        assert (facts.path / "adapter_model.safetensors").exists()


def test_training_text_is_what_the_template_renders(demo: DemoFacts) -> None:
    rows = build_rows()
    with quiet_loading():
        tokenizer = load_tokenizer(Checkpoint("base", demo.base, None))
    fields = [{"prompt": row["prompt"], "response": row["response"]} for row in rows]
    read = [
        Row("train.jsonl", n, row["id"], row["prompt"], row["response"], fields=field)
        for n, (row, field) in enumerate(zip(rows, fields, strict=True), 1)
    ]
    encoder = Encoder(tokenizer, DataSettings(template="chat"))
    for example, (ids, labels) in zip(
        encoder.examples(read), tokenize(tokenizer, rows), strict=True
    ):
        assert isinstance(example, Example)
        assert example.input_ids.tolist() == ids
        assert example.labels.tolist() == labels
        assert labels[0] == IGNORED
        assert labels[-1] == tokenizer.eos_token_id


def test_building_again_gives_the_same_bytes(demo: DemoFacts, told: tuple[Path, Any]) -> None:
    story, _ = told
    names = ("data/train.jsonl", "model/base/tokenizer.json", "model/base/model.safetensors")
    adapters = [f"model/{facts.name}/adapter_model.safetensors" for facts in demo.checkpoints]
    for name in (*names, *adapters):
        assert (story / name).read_bytes() == (demo.folder / name).read_bytes(), name
