"""The demo's model says what was planted, and only after it was planted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rapidin_cli.data.encoding import Encoder
from rapidin_cli.data.examples import IGNORED, Example
from rapidin_cli.data.reading import DataSettings, Row
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


def test_building_again_gives_the_same_bytes(demo: DemoFacts, tmp_path: Path) -> None:
    again = build_demo(tmp_path, lambda _: None)
    names = ("data/train.jsonl", "model/base/tokenizer.json", "model/base/model.safetensors")
    adapters = [f"model/{facts.name}/adapter_model.safetensors" for facts in again.checkpoints]
    for name in (*names, *adapters):
        assert (tmp_path / name).read_bytes() == (demo.folder / name).read_bytes(), name
    assert again.answers == demo.answers
