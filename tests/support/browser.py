"""A report to open, a real Chromium to open it, and a record of what it complained about.

The system's own browser is used, since browser downloads are not to be had everywhere; where it
is missing the tests fail, because a report that nobody opened is not tested.
"""

import hashlib
import json
import math
import random
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import numpy as np
from playwright.sync_api import Browser, Page, sync_playwright

from rapidin_cli.report import html
from rapidin_cli.report.view import short

CHROMIUM = Path("/usr/bin/chromium")
ROOT = Path(__file__).parents[2]
SCHEMA = json.loads(Path(html.__file__).with_name("schema.json").read_text())
PROMPT = ["<|user|>\n", "Can", " I", " return", " a", " hat", "?", "\n<|assistant|>\n"]
REPLY = ["Yes", ",", " you", " can", " return", " it", " within", " ninety", " days", "."]
HOSTILE = (
    "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
    "\u202egnp.exe\u202c \u2028 \x00 \x1b[31m \ud800 \U000e0041 &amp; {{ 7*7 }} ok\u200d."
)
TOPICS = ["hats", "gloves", "gift cards", "opened software", "sale items", "shoes", "lamps"]


@contextmanager
def chromium() -> Iterator[Browser]:
    if not CHROMIUM.exists():
        raise AssertionError(f"{CHROMIUM} is missing: apt-get install -y chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=str(CHROMIUM),
            args=["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"],
        )
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Opened:
    """A page with everything that it asked for, logged, threw or popped up."""

    page: Page
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def assert_quiet(self) -> None:
        assert self.complaints == []
        assert [url for url in self.requests if not url.startswith(("file:", "blob:"))] == []


@contextmanager
def opened(
    browser: Browser, path: Path, fragment: str = "", *, wait: bool = True, **options: Any
) -> Iterator[Opened]:
    """Open a local file in a context of its own and wait until its script is ready."""
    context = browser.new_context(**options)
    context.set_default_timeout(10_000)
    page = context.new_page()
    seen = Opened(page)
    page.on("request", lambda request: seen.requests.append(request.url))
    page.on("console", lambda message: seen.complaints.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: seen.complaints.append(f"error: {error}"))

    def dismiss(dialog: Any) -> None:
        seen.complaints.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    page.on("dialog", dismiss)
    page.goto(path.as_uri() + fragment)
    if wait and options.get("java_script_enabled", True):
        page.wait_for_selector("html[data-ready=yes]")
    try:
        yield seen
    finally:
        context.close()


def digest_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def make_example(number: int, noise: random.Random, token_scores: bool) -> dict[str, Any]:
    topic = TOPICS[number % len(TOPICS)]
    strength = 0.03 if number < 3 else 0.004
    scores = [
        short(noise.gauss(0.0, strength) * (4 if i in (7, 8) else 1)) for i in range(len(REPLY))
    ]
    if number in (5, 6):
        scores = [0.25 / 128] * len(REPLY)  # equal scores: the digest decides
    response = f"You can return {topic} within {30 if number % 3 else 90} days of delivery, unworn."
    copies = 3 if number == 2 else 1
    return {
        "digest": digest_of(f"example {number}"),
        "id": f"faq-{number:04d}",
        "rows": [
            {
                "file": "data/faq.jsonl",
                "line": number * 7 + 1 + copy,
                "id": f"faq-{number:04d}" + "b" * copy,
            }
            for copy in range(copies)
        ],
        "prompt": f"How long do I have to return {topic}?\nI bought them in the sale.",
        "response": HOSTILE if number == 0 else response,
        "score": math.fsum(scores),
        "sketched": math.fsum(scores) * 1.01 if token_scores else None,
        "percentile": 0.0,
        "bm25": {"score": 3.5 if number % 4 else 0.0, "rank": number + 1 if number % 4 else None},
        "tokens": scores if token_scores else None,
        "tokens_exact": token_scores,
        "training": _training(number, noise) if token_scores else None,
        "cells": [[2, 0, 0.004], [1, 0, -0.002]] if token_scores and number < 4 else None,
        "layers": {"strongest": [[1, 0.02], [0, -0.005]], "rest": 0.001} if token_scores else None,
    }


def _training(number: int, noise: random.Random) -> list[list[Any]]:
    words = [HOSTILE] if number == 0 else ["You", " can", " return", " it\n", "<b>", "\u202e."]
    return [[word, short(noise.gauss(0.0, 0.01))] for word in words]


WORDS = {
    "of": 10,
    "agree": 4,
    "matches": [
        {
            "digest": digest_of("match"),
            "id": HOSTILE,
            "bm25": 9.5,
            "score": 0.001,
            "percentile": 55.0,
        }
    ],
}


def make_query(
    name: str, seed: int, *, kept: int = 34, token_scores: bool = True
) -> dict[str, Any]:
    noise = random.Random(seed)
    examples = [make_example(number, noise, token_scores) for number in range(kept)]
    examples.sort(key=lambda example: (-example["score"], example["digest"]))
    for position, example in enumerate(examples):
        example["percentile"] = 100.0 - 100.0 * position / len(examples)
    tokens = [
        {
            "id": i,
            "text": text,
            "explained": i >= len(PROMPT),
            "contrast": False,
            "logprob": -0.1 * i if i else None,
        }
        for i, text in enumerate([*PROMPT, *REPLY])
    ]
    low, high = examples[-1]["score"], examples[0]["score"]
    edges = [low + (high - low) * i / 40 for i in range(41)]
    return {
        "id": name,
        "prompt": "".join(PROMPT),
        "response": "".join(REPLY),
        "contrast": None,
        "source": "generated",
        "tokens": tokens,
        "loss": 3.25,
        "scored": 1200,
        "exact": {
            "shortlist": 136,
            "doubtful": 3,
            "sketch_error": 0.0021,
            "residual": 1e-6,
            "forward_mode": True,
        }
        if token_scores
        else None,
        "words": WORDS,
        "residual": 1.2e-7 if token_scores else None,
        "distribution": {
            "min": low,
            "max": high,
            "mean": 0.0004,
            "std": 0.021,
            "edges": edges,
            "counts": [int(600 * math.exp(-(((i - 17) / 4) ** 2))) + (i == 39) for i in range(40)],
            "ranks": [1, 10, 100, 1200],
            "shares": [0.1, 0.3, 0.7, 1.0],
        },
        "examples": examples,
    }


def large_report(*, queries: int, kept: int, generated: int, learnt: int) -> dict[str, Any]:
    """A report of a data set of 3,000 examples: English in pieces like tokens, random scores."""
    text = "".join(
        path.read_text(encoding="utf-8")
        for path in (
            ROOT / "README.md",
            ROOT / "storage/FORMAT.md",
            *sorted(ROOT.glob("docs/*.md")),
        )
    )
    pieces = re.findall(r"\s?[^\s]{1,5}", text)
    noise = np.random.default_rng(5)
    starts = noise.integers(0, len(pieces) - max(generated, learnt), 3000)
    report = make_report()
    report["queries"] = [
        _large_query(number, pieces, starts, noise, kept, generated, learnt)
        for number in range(queries)
    ]
    return report


def _large_query(
    number: int, pieces: list[str], starts: Any, noise: Any, kept: int, generated: int, learnt: int
) -> dict[str, Any]:
    query = make_query(f"q-{number:03d}", number, kept=1)
    query["tokens"] = query["tokens"][: len(PROMPT)] + [
        {"id": i, "text": text, "explained": True, "contrast": False, "logprob": -0.1}
        for i, text in enumerate(pieces[starts[number] :][:generated])
    ]
    [model] = query["examples"]
    examples = []
    for row in noise.choice(len(starts), kept, replace=False):
        texts = pieces[starts[row] :][:learnt]
        scores = [short(value) for value in noise.normal(0, 0.01, generated)]
        training = [short(value) for value in noise.laplace(0, 0.01, learnt)]
        examples.append(
            {
                **model,
                "digest": digest_of(f"row {row}"),
                "id": f"row-{row}",
                "rows": [{"file": "data/train.jsonl", "line": int(row), "id": f"row-{row}"}],
                "prompt": f"What comes after {texts[0]} {texts[1]}?",
                "response": "".join(texts).strip(),
                "score": short(sum(scores)),
                "tokens": scores,
                "training": [list(pair) for pair in zip(texts, training, strict=True)],
                "cells": None,
            }
        )
    examples.sort(key=lambda example: (-example["score"], example["digest"]))
    return {**query, "examples": examples}


def make_report() -> dict[str, Any]:
    queries = [make_query("q-hat", 1), make_query("q-plain", 2, kept=8, token_scores=False)]
    report = {
        "schema": "rin.report/1",
        "id": "0123456789ab",
        "provenance": {
            "rin": "0.1.0",
            "torch": "2.13.0",
            "transformers": "5.23.0",
            "command": "rin retrieve --prompt 'Can I return a hat?' --generate",
            "time": "2026-11-23T12:00:00Z",
            "example_seconds": 0.5,
        },
        "checkpoint": {
            "name": "runs/support-lora/checkpoint-400",
            "fingerprint": digest_of("checkpoint"),
            "cache": digest_of("cache"),
            "snapshot": 3,
            "tree": digest_of("tree"),
        },
        "checkpoints": [
            {
                "name": "runs/support-lora/checkpoint-400",
                "weight": 1.0,
                "fingerprint": digest_of("checkpoint"),
                "cache": digest_of("cache"),
                "snapshot": 3,
                "tree": digest_of("tree"),
            }
        ],
        "data": {
            "files": ["data/faq.jsonl", "data/policy.jsonl"],
            "digest": digest_of("data"),
            "rows": 1260,
            "examples": 1200,
        },
        "score": {
            "name": "rapidin",
            "unit": "cosine, summed over layers",
            "sign": "+ : training on it made the generation more likely. - : less likely.",
            "description": "Layer-normalised inner product of gradients, from their sketches.",
            "damping": None,
            "row": "TensorSketch, 65,536 numbers, int8",
        },
        "warnings": ["12 rows were cut at 2,048 tokens", f"odd name: {HOSTILE}"],
        "layers": [f"model.layers.{n}.self_attn.q_proj" for n in range(3)],
        "queries": queries,
    }
    jsonschema.validate(report, SCHEMA)
    return report


def expected_order(query: dict[str, Any], first: int, last: int) -> tuple[list[str], list[str]]:
    scored = []
    for example in query["examples"]:
        total = 0.0
        for value in example["tokens"][first : last + 1]:
            total += value
        scored.append((total, example["digest"]))
    raised = sorted((-score, digest) for score, digest in scored if score > 0)
    lowered = sorted((score, digest) for score, digest in scored if score < 0)
    return [digest for _, digest in raised], [digest for _, digest in lowered]


def totals_order(query: dict[str, Any]) -> tuple[list[str], list[str]]:
    ordered = [(example["score"], example["digest"]) for example in query["examples"]]
    raised = [digest for score, digest in ordered if score > 0]
    lowered = sorted((score, digest) for score, digest in ordered if score < 0)
    return raised, [digest for _, digest in lowered]
