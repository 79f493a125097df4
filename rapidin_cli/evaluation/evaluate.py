"""`rin evaluate`: does influence find planted rows, and predict the effect of retraining?"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from rapidin_cli.data.examples import Example
from rapidin_cli.errors import InputError, MissingError, UsageError
from rapidin_cli.evaluation import metrics
from rapidin_cli.evaluation.retraining import Retrainer
from rapidin_cli.evaluation.unlearning import Ascent, Unlearner
from rapidin_cli.gradients.optimizer_state import has_second_moments
from rapidin_cli.influence.lexical import Lexical
from rapidin_cli.influence.loaded_checkpoint import LoadedCheckpoint
from rapidin_cli.influence.options import Options
from rapidin_cli.influence.queries import Query, Question
from rapidin_cli.influence.score import SCORES
from rapidin_cli.models.loading import load_model
from rapidin_cli.output.stages import StageProgress
from rapidin_cli.output.version import __version__
from rapidin_cli.work.devices import choose_devices
from rapidin_cli.workspace.project_checkpoint import ProjectCheckpoint

Array = np.ndarray[Any, Any]

BASELINES = ("bm25", "random")
UNLEARNING = "unlearn"
"""The rise of a row's loss as the query is unlearnt, as a score of the row."""
SCHEMA = "rin.evaluation/1"


@dataclass(frozen=True)
class Plan:
    """What is to be evaluated.

    Attributes:
        questions: what is asked.
        scores: names, including those of `BASELINES`; empty for all that are available.
        exact: score all rows from whole gradients instead of cached rows.
        device: `auto`, `cpu` or `cuda:N`.
        workers: trainings at a time.
        ascent: how `UNLEARNING` unlearns.
    """

    questions: Sequence[Question]
    scores: Sequence[str] = ()
    exact: bool = False
    device: str = "auto"
    workers: int = 1
    ascent: Ascent = field(default_factory=Ascent)


class Evaluation:
    """Scores of all distinct examples for some queries, by several ways to score."""

    def __init__(self, opened: ProjectCheckpoint, plan: Plan, progress: StageProgress) -> None:
        self._plan = plan
        self._progress = progress
        self.opened = opened
        self.examples = [rows[0] for rows in self.opened.dataset.by_digest.values()]
        self._names = self._choose()
        self.queries: list[Query] = []
        self.scores: dict[str, Array] = {}
        self._score()

    def _choose(self) -> list[str]:
        known = [*SCORES, *BASELINES, UNLEARNING]
        for name in self._plan.scores:
            if name not in known:
                raise UsageError(
                    f"there is no score {name!r}", hint=f"choose from {', '.join(known)}"
                )
        if self._plan.scores:
            return list(self._plan.scores)
        spec = self.opened.config.gradient
        if spec.row == "sketch" and spec.sketch == "oporp":
            return ["rapidin", *BASELINES]
        names = ["rapidin", "dot", "cosine"]
        if spec.row == "sketch":
            names.append("gram")
        if self.opened.newest_curvature() is not None:
            names.append("ekfac")
        if has_second_moments(self.opened.checkpoint):
            names.append("adam")
        return [*names, *BASELINES]

    def _score(self) -> None:
        loaded = self.opened.load(self._plan.device)
        if loaded.missing:
            name = self.opened.name
            raise MissingError(
                f"{loaded.missing:,} examples in the data are not cached for {name!r}",
                hint=f"rin cache {name}",
            )
        options = Options(
            tokens=False,
            exact=int(self._plan.exact),
            batch_tokens=self.opened.config.cache.batch_tokens,
        )
        self.queries = [loaded.query(question, options) for question in self._plan.questions]
        columns: dict[str, list[Array]] = {n: [] for n in self._names if n != UNLEARNING}
        lexical = Lexical(self.examples) if "bm25" in self._names else None
        generator = np.random.default_rng(0)
        for number, query in enumerate(self.queries):
            self._progress("scores", number, len(self.queries))
            for name in columns:
                if name == "random":
                    columns[name].append(generator.standard_normal(len(self.examples)))
                elif name == "bm25":
                    assert lexical is not None
                    columns[name].append(lexical.scores(query.example))
                else:
                    columns[name].append(self._column(loaded, query, replace(options, score=name)))
        del loaded  # one model at a time
        if UNLEARNING in self._names:
            columns[UNLEARNING] = list(self._unlearnt())
        self.scores = {name: np.stack(columns[name], 1) for name in self._names}

    def _unlearnt(self) -> Iterator[Array]:
        """How far every example's loss rises as a query is unlearnt; query by query."""
        unlearner = self.unlearner()
        for number, query in enumerate(self.queries):
            self._progress("unlearning", number, len(self.queries))
            yield np.array(unlearner.rises([query.example], self.examples))

    def unlearner(self) -> Unlearner:
        """Return what unlearns examples, on a model of its own.

        Raises:
            InputError: a query is a contrast, which has no single loss.
        """
        self._refuse_contrasts("unlearn")
        model = load_model(self.opened.stamped, self._device())
        return Unlearner(model, self._plan.ascent)

    def _refuse_contrasts(self, what: str) -> None:
        if any(query.contrast is not None for query in self.queries):
            raise InputError(
                f"a query with a contrast has no single loss to {what}", hint="remove the contrast"
            )

    def _device(self) -> str:
        device = self._plan.device
        return choose_devices("auto", 1)[0][0] if device == "auto" else device

    def _column(self, loaded: LoadedCheckpoint, query: Query, options: Options) -> Array:
        if self._plan.exact:
            scorer = loaded.scorer(loaded.ask(query, options), alone=False)
            return scorer.scores(self.examples, tokens=False).totals.numpy()
        asked = loaded.ask(query, options)
        digests = [example.digest for example in self.examples]
        return loaded.everything(loaded.direction(asked), asked.score, digests).totals

    def retrainer(self) -> Retrainer:
        """Return what retrains on parts of the examples."""
        self._refuse_contrasts("predict")
        examples = [query.example for query in self.queries]
        return Retrainer(self.opened, examples, self._device(), self._plan.workers)

    def report(self, kind: str, results: Mapping[str, Mapping[str, Any]], **facts: Any) -> Any:
        """Return the outcome (`rin.evaluation/1`)."""
        return {
            "schema": SCHEMA,
            "kind": kind,
            "rin": __version__,
            "checkpoint": self.opened.name,
            "fingerprint": self.opened.fingerprint,
            "exact": self._plan.exact,
            "row": self.opened.config.gradient.describe(),
            "examples": len(self.examples),
            "queries": [query.id for query in self.queries],
            **facts,
            "scores": [
                {"name": name, "measures": [_measure(*item) for item in found.items()]}
                for name, found in results.items()
            ],
        }


def _measure(name: str, values: Sequence[float] | Array) -> dict[str, Any]:
    mean, low, high = metrics.interval(values)
    numbers = [round(float(value), 6) for value in values]
    return {"name": name, "mean": mean, "low": low, "high": high, "values": numbers}


def retrieval(
    opened: ProjectCheckpoint,
    plan: Plan,
    planted: Callable[[Question, Example], bool],
    top: int,
    progress: StageProgress,
) -> Any:
    """Measure how high the planted rows of each query rank.

    Args:
        planted: whether a row is what a question should find.
        top: k of the precision.

    Raises:
        InputError: a query has no planted row.
    """
    evaluation = Evaluation(opened, plan, progress)
    masks = []
    for question in plan.questions:
        mask = np.array([planted(question, example) for example in evaluation.examples])
        if not mask.any():
            raise InputError(
                f"query {question.id!r}: the data has none of the rows planted for it",
                hint="correct --planted, or the query's field planted",
            )
        masks.append(mask)
    results = {}
    for name, scores in evaluation.scores.items():
        pairs = list(zip(scores.T, masks, strict=True))
        results[name] = {
            f"precision@{top}": [metrics.precision_at(s, m, top) for s, m in pairs],
            "auPRC": [metrics.average_precision(s, m) for s, m in pairs],
            "auPRC by size": [metrics.average_precision(np.abs(s), m) for s, m in pairs],
            "auROC": [metrics.auroc(s, m) for s, m in pairs],
        }
    share = float(np.mean([mask.mean() for mask in masks]))
    return evaluation.report("retrieval", results, planted=share)


def linear_datamodeling(
    opened: ProjectCheckpoint, plan: Plan, subsets: int, progress: StageProgress
) -> Any:
    """Measure the LDS over random halves of the data, each trained on again."""
    evaluation = Evaluation(opened, plan, progress)
    retrainer = evaluation.retrainer()
    count = len(evaluation.examples)
    halves = [sorted(random.Random(n).sample(range(count), count // 2)) for n in range(subsets)]
    tasks = {
        str(number): [evaluation.examples[row] for row in half]
        for number, half in enumerate(halves)
    }
    found = retrainer.run(tasks, lambda done, total: progress("trainings", done, total))
    members = np.zeros((subsets, count))
    for number, half in enumerate(halves):
        members[number, half] = 1
    outcomes = np.array([found[str(number)] for number in range(subsets)])
    results = {
        name: {"LDS": metrics.lds(scores, members, outcomes)}
        for name, scores in evaluation.scores.items()
    }
    return evaluation.report("lds", results, trainings=subsets)


def _beside_random(
    opened: ProjectCheckpoint, plan: Plan, top: int, progress: StageProgress
) -> tuple[Evaluation, dict[str, Array]]:
    """Score the rows by all that is wanted but chance, which is drawn as whole sets of `top`."""
    names = [name for name in plan.scores if name != "random"]
    evaluation = Evaluation(opened, replace(plan, scores=names), progress)
    count = len(evaluation.examples)
    if not 0 < top < count:
        raise UsageError(f"--top {top}: there are only {count:,} examples", hint="use a lower one")
    return evaluation, {name: s for name, s in evaluation.scores.items() if name != "random"}


def counterfactual(
    opened: ProjectCheckpoint, plan: Plan, top: int, repeats: int, progress: StageProgress
) -> Any:
    """Leave out each score's `top` rows of a query, train again, and see the query's loss rise.

    Args:
        repeats: random drops; their mean is the score `random`.
    """
    evaluation, scores = _beside_random(opened, plan, top, progress)
    retrainer = evaluation.retrainer()
    count = len(evaluation.examples)

    def without(rows: Sequence[int]) -> list[Example]:
        dropped = set(rows)
        return [e for number, e in enumerate(evaluation.examples) if number not in dropped]

    tasks = {"all": evaluation.examples}
    for number in range(repeats):
        tasks[f"random {number}"] = without(random.Random(number).sample(range(count), top))
    for name, values in scores.items():
        for query, column in enumerate(values.T):
            best = np.argsort(-column, kind="stable")[:top]
            tasks[f"{name} {query}"] = without(best.tolist())
    found = retrainer.run(tasks, lambda done, total: progress("trainings", done, total))
    whole = np.array(found["all"])
    results = {
        name: {"loss rise": [found[f"{name} {q}"][q] - whole[q] for q in range(len(whole))]}
        for name in scores
    }
    drops = np.array([found[f"random {number}"] for number in range(repeats)])
    results["random"] = {"loss rise": (drops.mean(0) - whole).tolist()}
    return evaluation.report("counterfactual", results, trainings=len(tasks), dropped=top)


def unlearning(
    opened: ProjectCheckpoint, plan: Plan, top: int, repeats: int, progress: StageProgress
) -> Any:
    """Unlearn each score's `top` rows of a query, and see the query's loss rise.

    It takes seconds where `counterfactual` takes a training, and is not one: see `unlearning`.

    Args:
        repeats: random sets of rows; their mean is the score `random`.
    """
    evaluation, scores = _beside_random(opened, plan, top, progress)
    examples, queries = evaluation.examples, [query.example for query in evaluation.queries]
    unlearner = evaluation.unlearner()
    done, total = 0, repeats + len(scores) * len(queries)

    def rises(rows: Sequence[int], others: Sequence[Example]) -> list[float]:
        nonlocal done
        progress("unlearning rows", done, total)
        done += 1
        return unlearner.rises([examples[row] for row in rows], others)

    results = {
        name: {
            "loss rise": [
                rises(np.argsort(-column, kind="stable")[:top].tolist(), [query])[0]
                for column, query in zip(values.T, queries, strict=True)
            ]
        }
        for name, values in scores.items()
    }
    drawn = [random.Random(number).sample(range(len(examples)), top) for number in range(repeats)]
    chance = np.array([rises(rows, queries) for rows in drawn])
    results["random"] = {"loss rise": chance.mean(0).tolist()}
    facts = {"unlearnt": top, "steps": plan.ascent.steps, "rate": plan.ascent.rate}
    return evaluation.report("unlearn", results, **facts)
