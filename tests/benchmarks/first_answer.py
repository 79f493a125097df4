"""How soon a default question is answered, in how much memory, and whether rightly.

    python tests/smollm2.py FOLDER alpaca_en_demo.json 500 30
    (cd FOLDER; rin init --yes; rin cache)
    python tests/benchmarks/first_answer.py FOLDER --data alpaca_en_demo.json [--json FILE]
    python tests/benchmarks/first_answer.py FOLDER --data alpaca_en_demo.json --many 1000

Questions are rows that were not trained on, with answers of 30 tokens. A child process asks the
first one: printed are the seconds from its start to the ranking by cached rows and to the finished
answer, the same for a second question to the loaded model, and the most memory that it took, beside
the model's. Then all questions are asked, and their lists compared with the exact totals of all
rows, of which one pass over them takes those of all questions.

`--many` pipes questions through one `rin retrieve - --exact 0 --no-tokens`, and prints the time of
each and the memory after a tenth of them and at the end.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import torch

from rapidin_cli import Options, Project, Question
from rapidin_cli.gradients.passes import as_batch
from rapidin_cli.influence.score import SCORES

TOKENS, TOP = 30, 10
HELD_OUT = slice(600, 1000)


def questions_of(project: Project, data: Path, count: int) -> list[Question]:
    """Rows that were not trained on, their answers cut to so many tokens."""
    tokenizer = project.opened(project.config.checkpoints[-1].name).tokenizer
    rows = [row for row in json.loads(data.read_text())[HELD_OUT] if not row["input"]]
    made = []
    for row in rows:
        ids = tokenizer(row["output"], add_special_tokens=False).input_ids[:TOKENS]
        if len(ids) == TOKENS:
            text = tokenizer.decode(ids)
            made.append(Question(f"q{len(made)}", prompt=row["instruction"], response=text))
    return made[:count]


def child(folder: str, data: str, born: str, score: str) -> None:
    """Ask two questions in this process; print times and memory as JSON."""
    project = Project.open(Path(folder))
    first, second = questions_of(project, Path(data), 2)
    asked = project.session()
    told: dict[str, Any] = {}
    for name, question in (("cold", first), ("warm", second)):
        start = float(born) if name == "cold" else time.time()

        def ranked(_: Any, name: str = name, start: float = start) -> None:
            told[f"{name}, ranking"] = time.time() - start

        asked.retrieve([question], Options(score=score), ranked=ranked)
        told[f"{name}, answer"] = time.time() - start
    status = Path("/proc/self/status").read_text()
    told["peak"] = int(status.split("VmHWM:")[1].split()[0]) * 1024
    print(json.dumps(told))


def exact_totals(project: Project, questions: list[Question], score: str) -> np.ndarray[Any, Any]:
    """The exact total of every row for every question, (N, Q)."""
    loaded = project.opened(project.config.checkpoints[-1].name).load()
    options = Options(score=score, exact=1)
    asked = [loaded.ask(loaded.query(question, options), options) for question in questions]
    passes, examples = (
        asked[0].passes,
        project.opened(project.config.checkpoints[-1].name).dataset.distinct,
    )
    layers = range(len(asked[0].gradient.layers))
    queries = [torch.cat([a.gradient.layers[n].dense().flatten(1) for a in asked]) for n in layers]
    inverse = torch.stack([1 / a.divisors for a in asked])
    loaded.scorer(asked[0])  # decides what fits in memory
    totals = np.zeros((len(examples), len(questions)), np.float32)
    for row, same in enumerate(examples):
        inner, norm = torch.zeros(len(questions), len(queries)), torch.zeros(len(queries))

        def consume(
            number: int, x: Any, d: Any, inner: torch.Tensor = inner, norm: torch.Tensor = norm
        ) -> None:
            gradient = (d[0].T @ x[0]).flatten()
            inner[:, number], norm[number] = queries[number] @ gradient, gradient.norm()

        passes.backward(as_batch([same[0]]), consume)
        totals[row] = (inner * inverse / SCORES[score].divisors(norm)).sum(1).numpy()
        print(f"\rexact totals {row + 1}/{len(examples)}", end="", file=sys.stderr)
    return totals


def agreement(project: Project, questions: list[Question], score: str) -> dict[str, Any]:
    """Compare the lists of default answers with those of all exact totals."""
    asked, found = project.session(), []
    for question in questions:
        start = time.time()
        (query,) = asked.retrieve([question], Options(score=score))["queries"]
        found.append((query, time.time() - start))
    del asked
    digests = [
        rows[0].digest.hex()
        for rows in project.opened(project.config.checkpoints[-1].name).dataset.distinct
    ]
    totals = exact_totals(project, questions, score)
    equal, shared = 0, []
    for column, (query, _) in zip(totals.T, found, strict=True):
        order = np.argsort(-column, kind="stable")
        true = {digests[n] for n in [*order[:TOP], *order[-TOP:]]}
        ranked = sorted(query["examples"], key=lambda example: -example["score"])
        ours = {example["digest"] for example in [*ranked[:TOP], *ranked[-TOP:]]}
        equal += true == ours
        shared.append(len(true & ours) / len(true))
    return {
        "questions": len(questions),
        "equal": equal,
        "shared": float(np.mean(shared)),
        "exact": float(np.mean([query["exact"]["shortlist"] for query, _ in found])),
        "doubtful": float(np.mean([query["exact"]["doubtful"] for query, _ in found])),
        "seconds": float(np.median([seconds for _, seconds in found])),
    }


def many(folder: Path, data: Path, count: int) -> dict[str, Any]:
    """Pipe questions through one process."""
    questions = questions_of(Project.open(folder), data, 20)
    command = [sys.executable, "-m", "rapidin_cli", "retrieve", "-"]
    process = subprocess.Popen(
        [*command, "--json", "--exact", "0", "--no-tokens"],
        cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    seconds, memory = [], []
    for number in range(count):
        question = questions[number % len(questions)]
        start = time.time()
        line = {"prompt": question.prompt, "response": question.response}
        process.stdin.write(json.dumps(line).encode() + b"\n")
        process.stdin.flush()
        json.loads(process.stdout.readline())
        seconds.append(time.time() - start)
        status = Path(f"/proc/{process.pid}/status").read_text()
        memory.append(int(status.split("VmRSS:")[1].split()[0]) * 1024)
    process.stdin.close()
    assert process.wait() == 0
    return {
        "questions": count,
        "first, s": seconds[0],
        "median, s": float(np.median(seconds[1:])),
        "slowest, s": max(seconds[1:]),
        "memory after a tenth": memory[count // 10],
        "memory at the end": memory[-1],
    }


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--questions", type=int, default=10)
    parser.add_argument("--score", default="auto")
    parser.add_argument("--many", type=int, default=0)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    if asked.many:
        found = many(asked.folder, asked.data, asked.many)
    else:
        arguments = [str(asked.folder), str(asked.data), str(time.time()), asked.score]
        code = "import sys; from tests.benchmarks.first_answer import child; child(*sys.argv[1:])"
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            cwd=Path(__file__).parents[2], check=True, stdout=subprocess.PIPE, env=os.environ,
        )  # fmt: skip
        found = json.loads(done.stdout)
        project = Project.open(asked.folder)
        weights = sum(f.stat().st_size for f in asked.folder.glob("base/*.safetensors"))
        found["model"] = weights
        score = asked.score
        if score == "auto":
            score = "ekfac" if project.opened("").has_curvature() else "rapidin"
        found |= agreement(project, questions_of(project, asked.data, asked.questions), score)
    print(json.dumps(found, indent=1))
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
