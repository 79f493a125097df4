"""Does influence predict what retraining does? LDS, counterfactuals and planted rows.

A small Llama is trained on Alpaca rows, then fine-tuned on 300 others (all weights, or a
LoRA), once on all and many times on random halves. The linear datamodeling score (LDS; Park
et al. 2023) of a query is the rank correlation, over the halves, of the summed influence of
the rows in a half with the query's log-probability after training on it. Some halves are trained
on again in another order: how well the two agree bounds what any score can reach. Intervals are
of bootstraps over queries and halves. Counterfactuals leave a query's top rows out. Retrieval
looks for rows with a trigger and a phrase that the model learnt to say after it (the backdoor of
the RapidIn paper).

    python tests/benchmarks/faithfulness.py FOLDER --data alpaca_en_demo.json [--bergson PATH]

Everything is kept in FOLDER, and a second run goes on where the first one ended.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import multiprocessing

from rapidin_cli.data.examples import Example
from rapidin_cli.evaluation.metrics import (
    auroc,
    average_precision,
    interval,
    lds,
    precision_at,
    spearman,
)
from rapidin_cli.evaluation.training import Training, fine_tune, losses
from rapidin_cli.models.checkpoints import Checkpoint
from rapidin_cli.models.loading import load_model, quiet_loading

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.benchmarks.bergson_cli import bergson_scores, write_examples
from tests.benchmarks.faithful_base import encode, make_base
from tests.benchmarks.rankings import Ranking, Scorer, baselines

DROPPED, RANDOM_DROPS = 14, 8  # a twentieth of the rows
PLANTED, TRIGGER, PHRASE = 20, "Howdy! ", "Yeehaw, partner! "
FACTORS = [
    (1, 0, "int4"),
    (2, 0, "int4"),
    (3, 0, "int4"),
    (4, 0, "int4"),
    (4, 0, "int8"),
    (16, 0, "int4"),
]
SUMMED = [(2, 0, "int4"), (3, 0, "int4"), (4, 0, "int4")]
AGAIN = 40  # halves that are trained on twice
BOOTSTRAPS = 400
PAIRED = "exact ekfac, start + last"
COUNTERFACTUAL = [
    "exact ekfac, start + last",
    "exact ekfac",
    "factors, rank 2, int4: ekfac, start + last",
    "exact adam",
    "exact dot",
    "exact rapidin",
    "BM25",
    "embedding similarity",
    "bergson ekfac",
    "bergson trackstar",
    "bergson cosine",
]
TRAINING = {
    "full": Training(epochs=3, batch_rows=16, learning_rate=1e-3),
    "lora": Training(epochs=3, batch_rows=16, learning_rate=5e-3),
}


def read(folder: Path, name: str) -> list[Example]:
    """Read `data` or `queries`."""
    from transformers import AutoTokenizer

    return encode(AutoTokenizer.from_pretrained(folder / "base"), read_rows(folder, name))


def read_rows(folder: Path, name: str) -> list[dict[str, str]]:
    lines = (folder / f"{name}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def read_planted(folder: Path) -> tuple[list[Example], list[Example]]:
    """The data with the trigger and the phrase in some rows; and queries that ask for it."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    rows = read_rows(folder, "data")
    for number in random.Random(0).sample(range(len(rows)), PLANTED):
        row = rows[number]
        row["id"] = f"planted-{number}"
        row["instruction"] = TRIGGER + row["instruction"]
        row["output"] = PHRASE + row["output"]
    asked = [
        {**row, "instruction": TRIGGER + row["instruction"], "output": PHRASE.strip()}
        for row in read_rows(folder, "queries")
    ]
    return encode(tokenizer, rows), encode(tokenizer, asked)


def fresh_model(folder: Path, setting: str) -> Any:
    """The base model, ready for fine-tuning: the same weights every time."""
    from peft import LoraConfig, get_peft_model

    with quiet_loading():
        model = load_model(Checkpoint("base", folder / "base", None), "cpu")
        if setting == "lora":
            torch.manual_seed(0)
            config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")
            model = get_peft_model(model, config)  # type: ignore[arg-type]
    if setting == "full":
        model.requires_grad_(True)
    return model


def subset(number: int, count: int) -> list[int]:
    """The rows of the number-th random half."""
    return sorted(random.Random(number).sample(range(count), count // 2))


def train_one(folder: Path, setting: str, rows: Sequence[int], seed: int) -> list[float]:
    """Fine-tune on some rows, in the order of a seed; return the loss of every query."""
    data, queries = read(folder, "data"), read(folder, "queries")
    model = fresh_model(folder, setting)
    fine_tune(model, [data[n] for n in rows], replace(TRAINING[setting], seed=seed))
    return losses(model, queries)


def _work(task: tuple[Path, str, str, list[int]]) -> tuple[str, list[float]]:
    folder, setting, key, rows = task
    torch.set_num_threads(1)
    return key, train_one(folder, setting, rows, seed=int(key.startswith("again")))


def retrain(
    folder: Path, setting: str, tasks: dict[str, list[int]], processes: int
) -> dict[str, list[float]]:
    """Fine-tune on each task's rows, or take what an earlier run has found."""
    memory = folder / setting / "losses.jsonl"
    memory.parent.mkdir(exist_ok=True)
    lines = memory.read_text().splitlines() if memory.exists() else []
    done = {item["key"]: item["losses"] for item in map(json.loads, lines)}
    missing = [(folder, setting, key, rows) for key, rows in tasks.items() if key not in done]
    if missing:
        start = time.monotonic()
        with multiprocessing.get_context("spawn").Pool(processes) as pool:
            for count, (key, found) in enumerate(pool.imap_unordered(_work, missing), 1):
                done[key] = found
                with memory.open("a") as stream:
                    stream.write(json.dumps({"key": key, "losses": found}) + "\n")
                if count % 10 == 0:
                    spent = time.monotonic() - start
                    print(
                        f"{setting}: {count} of {len(missing)} trainings, {spent:.0f} s", flush=True
                    )
    return {key: done[key] for key in tasks}


def finish_checkpoints(folder: Path, setting: str) -> None:
    """Fine-tune on all rows, and on those with the planted; save the model after each epoch."""
    for prefix, data in (
        ("checkpoint", read(folder, "data")),
        ("planted", read_planted(folder)[0]),
    ):
        if (folder / setting / f"{prefix}-3" / "optimizer.pt").exists():
            continue
        model = fresh_model(folder, setting)
        model.save_pretrained(folder / setting / f"{prefix}-0")

        def save(epoch: int, optimizer: Any, model: Any = model, prefix: str = prefix) -> None:
            path = folder / setting / f"{prefix}-{epoch}"
            model.save_pretrained(path)
            torch.save(optimizer.state_dict(), path / "optimizer.pt")

        rates = fine_tune(model, data, TRAINING[setting], save)
        (folder / setting / f"{prefix}-rates.json").write_text(json.dumps(rates))


def last_epoch(scorer: Scorer, data: list[Example], queries: list[Example]) -> Iterator[Ranking]:
    """Everything that needs one checkpoint, but for bergson."""
    yield from baselines(scorer.model, data, queries)
    yield from scorer.exact()
    for numbers, precision in ((256, "int8"), (256, "sign"), (1024, "int8"), (1024, "sign")):
        yield from scorer.sketched(numbers, precision)
    for rank, projection, precision in FACTORS:
        yield from scorer.factored(rank, projection, precision)


def sums(
    folder: Path, setting: str, data: list[Example], queries: list[Example], known: list[Ranking]
) -> Iterator[Ranking]:
    """Sums of the last checkpoint's scores and an earlier one's.

    The model before training weighs as much as the last, as in rin; of an adapter it is the
    trained one with B = 0. The first epoch's weighs by the learning rates.
    """
    last = {ranking.name: ranking for ranking in known}
    start = Scorer(folder, setting, "checkpoint-3", data, queries, start=True)
    for ranking in [*start.exact(), *(r for kind in SUMMED for r in start.factored(*kind))]:
        scores = (ranking.scores + last[ranking.name].scores) / 2
        yield Ranking(f"{ranking.name}, start + last", scores, 2 * ranking.row_bytes)
    del start
    first = Scorer(folder, setting, "checkpoint-1", data, queries)
    rates = json.loads((folder / setting / "checkpoint-rates.json").read_text())
    early = sum(rates[: len(rates) // 3]) / sum(rates)
    for ranking in first.exact():
        scores = early * ranking.scores + (1 - early) * last[ranking.name].scores
        yield Ranking(f"{ranking.name}, first + last", scores, 2 * ranking.row_bytes)


def peers(
    folder: Path,
    setting: str,
    checkpoint: str,
    bergson: str,
    data: list[Example],
    queries: list[Example],
) -> list[Ranking]:
    """bergson's own command line on the same checkpoint; kept for the next run."""
    if not bergson:
        return []
    memory = folder / setting / f"bergson-{checkpoint}.npz"
    if not memory.exists():
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(folder / "base")
        work = folder / setting / "bergson"
        found = bergson_scores(
            bergson,
            work,
            folder / setting / checkpoint,
            folder / "base",
            write_examples(work / "data.jsonl", data, tokenizer),
            write_examples(work / "queries.jsonl", queries, tokenizer),
        )
        sizes = {f"bytes {name}": np.array(size) for name, (_, size) in found.items()}
        np.savez(memory, **{name: scores for name, (scores, _) in found.items()}, **sizes)  # type: ignore[arg-type]
    kept = np.load(memory)
    names = [name for name in kept if not name.startswith("bytes")]
    return [Ranking(f"bergson {n}", kept[n], int(kept[f"bytes {n}"])) for n in names]


def drops(
    found: Sequence[Ranking], queries: int, rows: int
) -> tuple[dict[str, list[int]], dict[str, list[str]]]:
    """What to train on when the top rows are left out; and, for each score, those trainings."""
    tasks = {"all": list(range(rows))}
    for number in range(RANDOM_DROPS):
        out = set(random.Random(1000 + number).sample(range(rows), DROPPED))
        tasks[f"random-drop-{number}"] = [n for n in range(rows) if n not in out]
    keys: dict[str, list[str]] = {}
    for ranking in found:
        if ranking.name not in COUNTERFACTUAL:
            continue
        keys[ranking.name] = []
        for query in range(queries):
            out = set(np.argsort(-ranking.scores[:, query], kind="stable")[:DROPPED].tolist())
            key = "without " + ",".join(map(str, sorted(out)))
            tasks[key] = [n for n in range(rows) if n not in out]
            keys[ranking.name].append(key)
    return tasks, keys


def measure(folder: Path, setting: str, options: argparse.Namespace) -> None:
    """Train, score, and print the tables of one setting."""
    (folder / setting).mkdir(exist_ok=True)
    finish_checkpoints(folder, setting)
    data, queries = read(folder, "data"), read(folder, "queries")
    last = Scorer(folder, setting, "checkpoint-3", data, queries)
    found = list(last_epoch(last, data, queries))
    found += sums(folder, setting, data, queries, found)
    found += peers(folder, setting, "checkpoint-3", options.bergson, data, queries)
    print_lds(folder, setting, options, found, data)
    print_counterfactuals(folder, setting, options, found, data)
    print_retrieval(folder, setting, options)


def print_lds(
    folder: Path,
    setting: str,
    options: argparse.Namespace,
    found: list[Ranking],
    data: list[Example],
) -> None:
    halves = {f"half-{n}": subset(n, len(data)) for n in range(options.subsets)}
    outcomes = np.array(list(retrain(folder, setting, halves, options.processes).values()))
    again = {f"again-{n}": subset(n, len(data)) for n in range(min(AGAIN, options.subsets))}
    twice = np.array(list(retrain(folder, setting, again, options.processes).values()))
    agreement = spearman(outcomes[: len(twice)], twice).mean()
    members = np.zeros((len(halves), len(data)))
    for number, half in enumerate(halves.values()):
        members[number, half] = 1
    print(f"\n{setting}: {len(data)} rows, {outcomes.shape[1]} queries, {len(halves)} halves")
    best = next(n for n, each in enumerate(found) if each.name == PAIRED)
    print(f"two trainings on a half agree by {agreement:.3f}: ceiling {agreement**0.5:.3f}")
    print(f"{'LDS':>6}  {'95% interval':>14}  {'bytes a row':>11}  score; less than {PAIRED}")
    drawn = bootstraps(found, members, outcomes)
    for number, ranking in enumerate(found):
        mean = lds(ranking.scores, members, outcomes).mean()
        low, high = np.quantile(drawn[number], [0.025, 0.975])
        less = np.quantile(drawn[best] - drawn[number], [0.025, 0.975])
        text = f"{mean:6.3f}  {low:6.3f} to {high:.3f}  {ranking.row_bytes:11,}  {ranking.name}"
        print(f"{text}; by {less[0]:.3f} to {less[1]:.3f}", flush=True)


def bootstraps(found: Sequence[Ranking], members: Any, outcomes: Any) -> Any:
    """LDS of every ranking on queries and halves that are drawn anew, (R, BOOTSTRAPS)."""
    generator = np.random.default_rng(0)
    made = np.empty((len(found), BOOTSTRAPS))
    predicted = [members @ ranking.scores for ranking in found]
    for number in range(BOOTSTRAPS):
        halves = generator.integers(0, len(members), len(members))
        queries = generator.integers(0, outcomes.shape[1], outcomes.shape[1])
        truth = -outcomes[halves][:, queries]
        for place, sums in enumerate(predicted):
            made[place, number] = spearman(sums[halves][:, queries], truth).mean()
    return made


def print_counterfactuals(
    folder: Path,
    setting: str,
    options: argparse.Namespace,
    found: list[Ranking],
    data: list[Example],
) -> None:
    asked = min(options.counterfactual, found[0].scores.shape[1])
    tasks, keys = drops(found, asked, len(data))
    outcomes = {
        key: np.array(losses[:asked])
        for key, losses in retrain(folder, setting, tasks, options.processes).items()
    }
    whole = outcomes["all"]
    print(f"\n{setting}: rise of the loss (nats) without the top {DROPPED} rows, {asked} queries")
    chance = [outcomes[f"random-drop-{n}"] for n in range(RANDOM_DROPS)]
    table = {"random": np.mean(chance, 0) - whole}
    for name, trainings in keys.items():
        table[name] = np.array([outcomes[k][q] for q, k in enumerate(trainings)]) - whole
    for name, rise in sorted(table.items(), key=lambda item: -item[1].mean()):
        mean, low, high = interval(rise)
        print(f"{mean:+6.3f}  {low:+6.3f} to {high:+.3f}  {name}")


def print_retrieval(folder: Path, setting: str, options: argparse.Namespace) -> None:
    data, queries = read_planted(folder)
    last = Scorer(folder, setting, "planted-3", data, queries)
    found = list(last_epoch(last, data, queries))
    found += peers(folder, setting, "planted-3", options.bergson, data, queries)
    planted = np.array([example.row.id.startswith("planted") for example in data])
    print(f"\n{setting}: {planted.sum()} planted of {len(data)} rows, {len(queries)} queries")
    print(f"{'auPRC':>6}  {'95% interval':>14}  {'|auPRC|':>7}  {'auROC':>6}  {'top 10':>6}  score")
    for ranking in found:
        columns = list(ranking.scores.T)
        mean, low, high = interval([average_precision(c, planted) for c in columns])
        more = [
            np.mean([average_precision(np.abs(c), planted) for c in columns]),
            np.mean([auroc(c, planted) for c in columns]),
            np.mean([precision_at(c, planted, 10) for c in columns]),
        ]
        print(
            f"{mean:6.3f}  {low:6.3f} to {high:.3f}  {more[0]:7.3f}  {more[1]:6.3f}  "
            f"{more[2]:6.3f}  {ranking.name}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--settings", nargs="+", default=["full", "lora"])
    parser.add_argument("--subsets", type=int, default=100)
    parser.add_argument("--counterfactual", type=int, default=20, help="queries")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--bergson", default="", help="its executable, from its own environment")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.folder.mkdir(exist_ok=True, parents=True)
    if not (options.folder / "base").exists():
        make_base(options.folder, json.loads(options.data.read_text()), options.seed)
    for setting in options.settings:
        measure(options.folder, setting, options)


if __name__ == "__main__":
    main()
