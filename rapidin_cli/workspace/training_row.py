"""The facts about one training row."""

from typing import Any

import numpy as np

from rapidin_cli.data.examples import IGNORED, Example
from rapidin_cli.data.reading import read_rows
from rapidin_cli.data.rows import BadRow
from rapidin_cli.errors import InputError
from rapidin_cli.influence.tokens import token_texts
from rapidin_cli.workspace.project_checkpoint import ProjectCheckpoint

_LARGEST_LAYERS = 5


def row_facts(opened: ProjectCheckpoint, identity: str) -> dict[str, Any]:
    """Return what is known of one training row (`rin.row/1`).

    Raises:
        InputError: no row has that id.
    """
    example = opened.dataset.find(identity)
    if example is None:
        raise InputError(
            f"no training row has the id {identity!r}",
            hint="use an id from the data, FILE:LINE, or the start of a digest",
        )
    snapshot = opened.newest()
    slot = snapshot.index.get(example.digest) if snapshot else None
    cached = None
    if snapshot is not None and slot is not None:
        stored = snapshot.read(slot, slot + 1, ["loss", "norm"])
        layers = snapshot.attributes["rin"]["layout"]["layers"]
        norm = stored["norm"][0]
        cached = {
            "loss": float(stored["loss"][0]),
            "norm": float(np.linalg.norm(norm)),
            "layers": [
                {"name": layers[n][0], "norm": float(norm[n])}
                for n in np.argsort(-norm)[:_LARGEST_LAYERS]
            ],
        }
    return {
        "schema": "rin.row/1",
        "id": example.row.id,
        "digest": example.digest.hex(),
        "places": [
            f"{same.row.file}:{same.row.line}" for same in opened.dataset.by_digest[example.digest]
        ],
        "checkpoint": opened.name,
        "tokens": len(example.input_ids),
        "learnt": example.learnt,
        "truncated": example.truncated,
        "cached": cached,
        "text": _marked(opened, example),
    }


def first_row(opened: ProjectCheckpoint) -> dict[str, Any]:
    """Return the first row of the data that can be used, without reading the others.

    Raises:
        InputError: the first of the rows that training would not have dropped cannot be used.
    """
    rows = read_rows(opened.folder, opened.config.data)
    for row in rows:
        made = row if isinstance(row, BadRow) else next(opened.encoder.examples([row]))
        if isinstance(made, Example):
            return {"id": made.row.id, "tokens": len(made.input_ids), "learnt": made.learnt,
                    "text": _marked(opened, made)}  # fmt: skip
        if not made.dropped:
            raise InputError(str(made), hint="correct [data] in rin.toml, or the row")
    raise InputError("no row is left to learn from", hint="correct [data] in rin.toml")


def _marked(opened: ProjectCheckpoint, example: Example) -> list[dict[str, Any]]:
    """The tokens of an example, each with whether it is learnt."""
    texts = token_texts(opened.tokenizer, example.input_ids.tolist())
    return [
        {"text": text, "learnt": bool(label != IGNORED)}
        for text, label in zip(texts, example.labels, strict=True)
    ]
