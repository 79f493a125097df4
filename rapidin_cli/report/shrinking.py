"""Smaller reports: without texts, to show to others, or within a size."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

View = Mapping[str, Any]

_TEXT = 500


def redact(report: View) -> dict[str, Any]:
    """Return the report with ids and scores only: no word of the data, the queries or the model.

    Tokens are replaced by their numbers, as `--token` counts them. Warnings and the command are
    removed too, since both quote texts.
    """
    return {
        **report,
        "warnings": ["redacted: only ids and scores; texts and warnings are left out"],
        "provenance": {**report["provenance"], "command": "rin report --redact"},
        "queries": [_redacted_query(query) for query in report["queries"]],
    }


def redact_comparison(found: View) -> dict[str, Any]:
    """Return a comparison with ids and scores only."""
    bare = {"prompt": "", "response": ""}
    pairs = []
    for pair in found["pairs"]:
        sides = {
            side: [{**example, **bare} for example in pair[side]] for side in ("raised", "lowered")
        }
        queries = {name: {**pair[name], **bare} for name in ("first", "second")}
        pairs.append({**pair, **queries, **sides})
    return {**found, "pairs": pairs}


def _redacted_query(query: View) -> dict[str, Any]:
    tokens, number = [], 0
    for token in query["tokens"]:
        tokens.append({**token, "id": 0, "text": f" #{number}" if token["explained"] else ""})
        number += token["explained"]
    return {
        **query,
        "prompt": "",
        "response": "",
        "contrast": None if query["contrast"] is None else "",
        "tokens": tokens,
        "examples": [_redacted_example(example) for example in query["examples"]],
    }


def _redacted_example(example: View) -> dict[str, Any]:
    training = example["training"]
    if training is not None:
        training = [[f" #{number}", score] for number, (_, score) in enumerate(training)]
    return {**example, "prompt": "", "response": "", "training": training}


def ever_smaller(report: View) -> Iterator[dict[str, Any]]:
    """Yield the report, then ever smaller versions: the least important parts go first.

    Warnings say what was left out.
    """
    smaller = dict(report)
    yield smaller
    left_out: list[str] = []
    for name, change in _steps():
        queries = [{**query, "examples": change(query["examples"])} for query in smaller["queries"]]
        left_out = [*left_out, name]
        told = f"left out to make this file smaller: {', '.join(left_out)}"
        smaller = {**smaller, "queries": queries, "warnings": [*report["warnings"], told]}
        yield smaller


def _steps() -> Iterator[tuple[str, Callable[[list[Any]], list[Any]]]]:
    yield "pairs of tokens", lambda examples: [{**e, "cells": None} for e in examples]
    yield (
        "scores of training tokens",
        lambda examples: [{**e, "training": None} for e in examples],
    )
    for most in (20, 10, 5):
        yield f"all but {most} examples of each sign", partial(_best, most)
    yield f"texts after {_TEXT} characters", lambda examples: [_cut(e) for e in examples]


def _best(most: int, examples: list[Any]) -> list[Any]:
    """The `most` highest and lowest of examples that are in the order of their totals."""
    return examples if len(examples) <= 2 * most else [*examples[:most], *examples[-most:]]


def _cut(example: View) -> dict[str, Any]:
    cut = {
        name: text if len(text) <= _TEXT else text[:_TEXT] + "…"
        for name, text in (("prompt", example["prompt"]), ("response", example["response"]))
    }
    return {**example, **cut}
