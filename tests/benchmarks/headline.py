"""One question answered from the cache, against computing all gradients anew for it.

    python tests/smollm2.py FOLDER alpaca_en_demo.json 500 30
    python tests/benchmarks/headline.py FOLDER [--threads 2] [--json FILE]

The ratio that the RapidIn paper leads with (6,326 for 52,002 rows of a 7 B model, on GPUs). All
rows of FOLDER's data are cached first (FOLDER/.rin is removed): that is what computing all
gradients takes, loading the model included. Then some questions are put to a session that has
answered one before, without exact scores, with the rows in memory. Of an answer the scan and the
scores by words grow with the rows, the question's own gradient and its report do not: so the
ratio is printed for this data and, by that arithmetic, for the paper's 52,002 rows.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch

from rapidin_cli import Project
from rapidin_cli.influence.options import Options
from rapidin_cli.influence.queries import Question
from rapidin_cli.work.devices import compute_dtype

PAPER_ROWS, PAPER_RATIO = 52_002, 6_326
QUESTIONS = [
    ("Name the largest planet.", "The largest planet of the solar system is Jupiter."),
    ("Give three tips for staying healthy.", "Eat well, sleep enough and move every day."),
    ("What is the capital of France?", "The capital of France is Paris."),
    ("Write a sentence about rain.", "The rain fell softly on the roof all night."),
    ("Explain photosynthesis.", "Plants turn light, water and carbon dioxide into sugar."),
    ("Translate hello to Spanish.", "Hola."),
]


def timed(work: Any, *what: Any) -> float:
    start = time.perf_counter()
    work(*what)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    torch.set_num_threads(options.threads)
    folder = options.folder
    if not (folder / "rin.toml").exists():
        subprocess.run([sys.executable, "-m", "rapidin_cli", "init"], cwd=folder, check=True)
    shutil.rmtree(folder / ".rin", ignore_errors=True)
    project = Project.open(folder)
    anew = timed(lambda: list(project.cache()))
    opened = project.opened()
    rows, tokens = (
        len(opened.dataset.examples),
        sum(len(e.input_ids) for e in opened.dataset.examples),
    )
    found = answers(project) | {"rows": rows, "tokens": tokens, "anew": round(anew, 2)}
    found["ratio"] = round(anew / found["answer"])
    more = PAPER_ROWS / rows
    grows = found["scan"] + found["words"]
    fixed = found["answer"] - grows
    found["ratio_at_paper_rows"] = round(more * anew / (fixed + more * grows))
    print(
        f"{rows:,} rows, {tokens:,} tokens: all gradients anew {anew:.1f} s "
        f"({anew / tokens * 1e6:,.0f} s for a million tokens); an answer {found['answer']:.3f} s, "
        f"of which the scan {found['scan'] * 1e3:.1f} ms, words {found['words'] * 1e3:.1f} ms\n"
        f"ratio {found['ratio']:,}; for {PAPER_ROWS:,} rows {more:.0f} x {anew:.1f} s / "
        f"({fixed:.3f} s + {more:.0f} x {grows * 1e3:.1f} ms) = "
        f"{found['ratio_at_paper_rows']:,} (paper: {PAPER_RATIO:,})"
    )
    found |= {
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "threads": options.threads,
        "dtype": compute_dtype("auto", "cpu"),
    }
    print(json.dumps(found))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


def answers(project: Project) -> dict[str, Any]:
    """Medians of the seconds of an answer, of its scan and of its scores by words."""
    session = project.session(device="cpu", hold="cpu")
    whole: list[float] = []
    parts: dict[str, list[float]] = {"best": [], "scores": []}
    for owner, name in ((session._panel.at(-1), "best"), (session._lexical, "scores")):
        watch(owner, name, parts[name])
    for number, (prompt, response) in enumerate(QUESTIONS):
        question = Question(str(number), prompt, response)
        whole.append(
            timed(session.retrieve, [question], Options(score="rapidin", exact=0, tokens=False))
        )
    return {
        "answer": round(statistics.median(whole[1:]), 4),
        "scan": round(statistics.median(parts["best"][1:]), 5),
        "words": round(statistics.median(parts["scores"][1:]), 5),
    }


def watch(owner: Any, name: str, seconds: list[float]) -> None:
    """Note how long each call of a method takes."""
    work = getattr(owner, name)

    def watched(*what: Any) -> Any:
        start = time.perf_counter()
        found = work(*what)
        seconds.append(time.perf_counter() - start)
        return found

    setattr(owner, name, watched)


if __name__ == "__main__":
    main()
