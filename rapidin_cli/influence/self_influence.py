"""Self-influence: how much a row's own gradient moves its own loss."""

from typing import Any

import numpy as np
import torch

from rapidin_cli.data.examples import Dataset
from rapidin_cli.errors import UsageError
from rapidin_cli.gradients.layout import RowLayout
from rapidin_cli.gradients.rows.kinds import SketchRows, row_kind
from rapidin_cli.gradients.spec import GradientSpec
from rapidin_cli.influence.preconditioners import Gram
from rapidin_cli.influence.score import SCORES, choose_score
from rapidin_storage import Snapshot


def self_influences(
    name: str, dataset: Dataset, snapshot: Snapshot, spec: GradientSpec, score: str, top: int
) -> dict[str, Any]:
    """Return the rows of the highest self-influence (`rin.self/1`), from cached rows alone.

    `dot` is the squared norm of a row's gradient, which TracIn uses to find mislabelled data.
    `gram` is the same through the inverse second moments of all rows, which is a row's
    leverage: large for rows that no other row resembles.

    Args:
        name: of the checkpoint.
        dataset, snapshot, spec: its data and its cached rows.
        top: how many rows.

    Raises:
        UsageError: another score, or rows that cannot answer it.
    """
    stored = snapshot.attributes["rin"]["layout"]
    layout = RowLayout.from_json(spec, stored)
    if score not in ("dot", "gram"):
        raise UsageError(
            f"--self-influence has no score {score!r}", hint="rin show --self-influence --score dot"
        )
    choose_score(score, layout)
    values = _squares(snapshot) if score == "dot" else _leverages(snapshot, layout)
    facts = snapshot.read(0, snapshot.commit.slots, ["loss"])["loss"]
    index = snapshot.index
    ranked = sorted(
        (digest for digest in dataset.by_digest if digest in index),
        key=lambda digest: (-values[index[digest]], digest),
    )
    rows = []
    for digest in ranked[:top]:
        first = dataset.by_digest[digest][0]
        rows.append(
            {
                "id": first.row.id,
                "digest": digest.hex(),
                "self_influence": float(values[index[digest]]),
                "loss": float(facts[index[digest]]),
                "learnt": first.learnt,
                "prompt": first.row.prompt,
                "response": first.row.response,
            }
        )
    return {
        "schema": "rin.self/1",
        "checkpoint": name,
        "score": score,
        "unit": SCORES[score].unit,
        "scored": len(ranked),
        "rows": rows,
    }


def _squares(snapshot: Snapshot) -> np.ndarray[Any, Any]:
    norm = snapshot.read(0, snapshot.commit.slots, ["norm"])["norm"]
    squares: np.ndarray[Any, Any] = np.square(norm).sum(1)
    return squares


def _leverages(snapshot: Snapshot, layout: RowLayout) -> np.ndarray[Any, Any]:
    gram = Gram(snapshot, layout, [], SCORES["gram"].damping, torch.device("cpu"))
    kind = row_kind(layout)
    assert isinstance(kind, SketchRows)
    sizes = torch.tensor(layout.blocks)
    found = np.zeros(snapshot.commit.slots)
    for start, stop, stored in snapshot.stream(kind.scored):
        norm = torch.from_numpy(stored["norm"])
        rows = kind.values(stored) * torch.repeat_interleave(norm, sizes, dim=1)
        found[start:stop] = (gram.apply_to_rows(rows) * rows).sum(1).numpy()
    return found
