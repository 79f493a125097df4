"""Reading the data: the first command tokenises it, and what do later ones wait for?

    python tests/benchmarks/data.py alpaca_en_demo.json [--rows 52000] [--json FILE]

The rows of a file (Alpaca JSON), repeated and numbered, are read by a tokenizer of the tests; the
index of words is made too. Each reading is a process of its own, whose peak of memory is taken,
less that of a process that only imports.
"""

import argparse
import json
import multiprocessing
import platform
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from rapidin_cli.data.encoding import Encoder
from rapidin_cli.data.loading import load_dataset
from rapidin_cli.data.rows import DataSettings
from rapidin_cli.influence.lexical import Lexical
from tests.support import tiny


def write_rows(source: Path, target: Path, count: int) -> None:
    rows = json.loads(source.read_text(encoding="utf-8"))
    with target.open("w", encoding="utf-8") as file:
        for number in range(count):
            row = rows[number % len(rows)]
            file.write(
                json.dumps({**row, "instruction": f"{row['instruction']} ({number})"}) + "\n"
            )


def read(data: Path, found: Any) -> None:
    """Read the data as a command does; put seconds, rows and the peak of memory in MB."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    settings = DataSettings(files=(data.name,), template="alpaca")
    start = time.monotonic()
    dataset = load_dataset(
        data.parent,
        settings,
        lambda: Encoder(tiny.tokenizer(), settings),
        kept=data.parent / "kept",
        tokenizer="tests",
    )
    rows, middle = len(dataset.by_digest), time.monotonic()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    Lexical.of(dataset)
    found.put((middle - start, time.monotonic() - middle, rows, (peak - before) / 1000))


def measure(data: Path) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    told = {}
    for name in ("first", "later"):
        found = context.Queue()
        process = context.Process(target=read, args=(data, found))
        process.start()
        tokens, words, rows, peak = found.get()
        process.join()
        told[name] = {
            "seconds": round(tokens, 2),
            "seconds_words": round(words, 2),
            "peak_mb": round(peak),
            "rows": rows,
        }
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("--rows", type=int, default=52_000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found: dict[str, Any] = {"machine": platform.processor() or platform.machine()}
    for rows in (options.rows // 4, options.rows):
        with tempfile.TemporaryDirectory() as folder:
            data = Path(folder) / "data.jsonl"
            write_rows(options.source, data, rows)
            time.sleep(2.1)  # a file that was just written is hashed, too
            found[str(rows)] = {"mb": data.stat().st_size // 10**6, **measure(data)}
        for name in ("first", "later"):
            one = found[str(rows)][name]
            print(
                f"{rows:,} rows, {found[str(rows)]['mb']} MB, {name}: {one['seconds']} s, words "
                f"{one['seconds_words']} s, at most {one['peak_mb']} MB more than imports"
            )
    print(json.dumps(found))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
