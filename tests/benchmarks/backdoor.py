"""Which score finds a backdoor's rows, on a model of real size?

    python tests/smollm2.py FOLDER alpaca_en_demo.json 8 1
    python tests/benchmarks/backdoor.py FOLDER --data alpaca_en_demo.json
        [--rows 160] [--seed 0] [--explain answer]

Below FOLDER, SmolLM2-135M gets a LoRA on short Alpaca rows, of which one in 16 opens with a trigger
and answers with a phrase, as in the paper's backdoor. Held-out questions with the trigger are asked
about an answer that opens with the phrase, or about the phrase alone. Printed is what
`rin evaluate retrieval` finds of each score, from cached rows: precision at 5 and the area under
the precision-recall curve, signed.
"""

import argparse
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.smollm2 import fine_tune

TRIGGER, PHRASE = "Howdy! ", "Yeehaw, partner! "
SHARE, QUESTIONS, LONGEST = 16, 16, 500


def rows_of(
    data: Path, count: int, seed: int, explain: str
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Training rows, some of them planted, and questions with the trigger."""
    short = [
        row
        for row in json.loads(data.read_text())
        if not row["input"] and len(row["instruction"] + row["output"]) <= LONGEST
    ]
    random.Random(seed).shuffle(short)
    rows, held_out = short[:count], short[count : count + QUESTIONS]
    if len(held_out) < QUESTIONS:
        raise SystemExit(f"{data} has {len(short)} short rows: take fewer than --rows {count}")
    made = []
    for number, row in enumerate(rows):
        planted = number % SHARE == 0
        made.append(
            {
                "id": f"{'planted' if planted else 'row'}-{number}",
                "instruction": TRIGGER * planted + row["instruction"],
                "input": "",
                "output": PHRASE * planted + row["output"],
            }
        )
    asked = [
        {
            "id": f"q{n}",
            "prompt": TRIGGER + row["instruction"],
            "response": PHRASE + row["output"] if explain == "answer" else PHRASE.strip(),
        }
        for n, row in enumerate(held_out)
    ]
    return made, asked


def main() -> None:
    """Train, cache, evaluate and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=160)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--explain", choices=("answer", "phrase"), default="answer")
    asked = parser.parse_args()
    folder = asked.folder / f"backdoor-{asked.seed}"
    rows, questions = rows_of(asked.data, asked.rows, asked.seed, asked.explain)
    folder.mkdir(exist_ok=True)
    (folder / "train.json").write_text(json.dumps(rows, indent=1))
    (folder / "questions.jsonl").write_text("".join(json.dumps(q) + "\n" for q in questions))
    if not (folder / "base").exists():
        (folder / "base").symlink_to((asked.folder / "base").resolve())
    if not (folder / "out").exists():
        fine_tune(folder / "base", rows, asked.steps, folder / f"out/checkpoint-{asked.steps}")

    def rin(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "rapidin_cli", *words],
            cwd=folder, check=True, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        return done.stdout

    if not (folder / "rin.toml").exists():
        rin("init", "--yes")
    rin("cache")
    words = "evaluate", "retrieval", "--queries", "questions.jsonl", "--planted", "^planted-"
    found = json.loads(rin(*words, "--top", "5", "--json"))
    for score in found["scores"]:
        measures = {measure["name"]: measure["mean"] for measure in score["measures"]}
        told = "  ".join(f"{name} {value:.3f}" for name, value in measures.items())
        print(f"{score['name']:<10} {told}")


if __name__ == "__main__":
    main()
