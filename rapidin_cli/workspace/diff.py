"""`rin diff`: rows added and removed, and how influences changed."""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from rapidin_cli.data.examples import IGNORED, Example
from rapidin_cli.data.rows import Row
from rapidin_cli.errors import InputError
from rapidin_cli.influence.options import Options
from rapidin_cli.influence.queries import Query
from rapidin_cli.influence.tokens import token_texts
from rapidin_cli.workspace.project_checkpoint import ProjectCheckpoint
from rapidin_cli.workspace.workspace import Workspace
from rapidin_storage import Snapshot

_SHOWN = 10

Sides = tuple[tuple[str, Snapshot], tuple[str, Snapshot]]


def _sides(project: Workspace, before: str, after: str) -> Sides:
    first = project.resolve_snapshot(before)
    return first, project.resolve_snapshot(after or first[0])


def compare_rows(project: Workspace, before: str, after: str) -> dict[str, Any]:
    """Return which rows only one of two snapshots has (`rin.diff/1`).

    Rows are identified by their example's digest; ids are given if the data has them.
    """
    (name, old), (other, new) = _sides(project, before, after)
    ids = row_ids(project, {name, other})
    added = sorted(set(new.index) - set(old.index))
    gone = sorted(set(old.index) - set(new.index))
    return {
        "schema": "rin.diff/1",
        "before": _side(name, old),
        "after": _side(other, new),
        "added": [_row(digest, ids) for digest in added],
        "gone": [_row(digest, ids) for digest in gone],
        "common": len(set(old.index) & set(new.index)),
    }


def _side(name: str, snapshot: Snapshot) -> dict[str, Any]:
    commit = snapshot.commit
    return {
        "checkpoint": name,
        "cache": commit.cache,
        "snapshot": commit.number,
        "tree": commit.tree,
        "rows": commit.rows,
    }


def row_ids(project: Workspace, names: Collection[str]) -> dict[bytes, str]:
    """Digest -> row id, if data and tokenizer are on this machine."""
    ids: dict[bytes, str] = {}
    for name in sorted(names):
        try:
            examples = project.opened(name).dataset.by_digest
        except InputError:
            continue
        ids |= {digest: same[0].row.id for digest, same in examples.items()}
    return ids


def _row(digest: bytes, ids: Mapping[bytes, str]) -> dict[str, Any]:
    return {"digest": digest.hex(), "id": ids.get(digest)}


def compare_influences(
    project: Workspace, before: str, after: str, report: Mapping[str, Any], top: int, device: str
) -> list[dict[str, Any]]:
    """Score a saved result's queries against both snapshots; return how the top changed.

    Every example among the `top` of either sign in either snapshot is listed, with its score
    and rank (1 raised the most) in both; None where it has no row.
    """
    (name, old), (other, new) = _sides(project, before, after)
    score = report["score"]["name"]
    examples = {query["id"]: _query(query) for query in report["queries"]}
    totals = []
    for side, snapshot in ((name, old), (other, new)):
        opened = project.opened(side)
        loaded = opened.load(device, snapshot=snapshot)
        for query in report["queries"]:
            _check_tokens(query, opened)
        options = Options(score, damping=report["score"]["damping"])
        totals.append({q: loaded.totals(e, options) for q, e in examples.items()})
        del loaded  # one model at a time
    ids = row_ids(project, {name, other})
    return [
        {"id": query, "moved": _moved(totals[0][query], totals[1][query], top, ids)}
        for query in examples
    ]


def _check_tokens(query: Mapping[str, Any], opened: ProjectCheckpoint) -> None:
    """Refuse a query whose saved tokens mean other words to this checkpoint."""
    for contrast in (False, True):
        saved = [token for token in query["tokens"] if token["contrast"] is contrast]
        texts = token_texts(opened.tokenizer, [token["id"] for token in saved])
        if texts == [token["text"] for token in saved]:
            continue
        raise InputError(
            f"query {query['id']!r} was saved with a different tokenizer from that of checkpoint "
            f"{opened.name!r}",
            hint=f"rin retrieve --checkpoint {opened.name} asks it again",
        )


def _query(saved: Mapping[str, Any]) -> Query:
    """A saved query's tokens, as they were explained."""
    contrast = None if saved["contrast"] is None else _example(saved, contrast=True)
    return Query(saved["id"], saved["source"], _example(saved, contrast=False), contrast)


def _example(saved: Mapping[str, Any], *, contrast: bool) -> Example:
    kept = [token for token in saved["tokens"] if token["contrast"] is contrast]
    tokens = np.array([token["id"] for token in kept], dtype=np.int32)
    explained = np.array([token["explained"] for token in kept])
    row = Row("", 0, saved["id"], saved["prompt"], saved["contrast" if contrast else "response"])
    return Example(row, tokens, np.where(explained, tokens, IGNORED).astype(np.int32))


Scores = Mapping[bytes, float]


def _moved(old: Scores, new: Scores, top: int, ids: Mapping[bytes, str]) -> list[dict[str, Any]]:
    ranks = [_ranks(old), _ranks(new)]
    wanted = {
        digest
        for scores, rank in zip((old, new), ranks, strict=True)
        for digest in scores
        if rank[digest] <= top or rank[digest] > len(scores) - top
    }
    listed = [
        {
            **_row(digest, ids),
            "before": _place(digest, old, ranks[0]),
            "after": _place(digest, new, ranks[1]),
        }
        for digest in wanted
    ]
    return sorted(listed, key=lambda item: (_order(item), item["digest"]))


def _ranks(scores: Scores) -> dict[bytes, int]:
    ordered = sorted(scores, key=lambda digest: (-scores[digest], digest))
    return {digest: number for number, digest in enumerate(ordered, 1)}


def _place(digest: bytes, scores: Scores, ranks: Mapping[bytes, int]) -> dict[str, Any] | None:
    if digest not in scores:
        return None
    return {"score": round(scores[digest], 6), "rank": ranks[digest]}


def _order(item: Mapping[str, Any]) -> int:
    return int((item["after"] or item["before"])["rank"])


def diff_lines(found: Mapping[str, Any]) -> list[str]:
    """Say it for people."""
    before, after = found["before"], found["after"]
    lines = [
        f"{side['checkpoint']}@{side['snapshot']}  {side['tree'][:12]}  {side['rows']:,} rows"
        for side in (before, after)
    ]
    lines.append(
        f"{len(found['added']):,} rows added, {len(found['gone']):,} removed, "
        f"{found['common']:,} in both"
    )
    for sign, key in (("+", "added"), ("-", "gone")):
        rows = found[key]
        lines += [f"{sign} {row['id'] or row['digest'][:16]}" for row in rows[:_SHOWN]]
        if len(rows) > _SHOWN:
            lines.append(f"{sign} ... and {len(rows) - _SHOWN:,} more")
    for query in found.get("queries", []):
        lines.append(f"query {query['id']}: score (rank) before -> after")
        lines += [
            f"  {_shown(item['before']):>18} -> {_shown(item['after']):<18} "
            f"{item['id'] or item['digest'][:16]}"
            for item in query["moved"]
        ]
    return lines


def _shown(place: Mapping[str, Any] | None) -> str:
    return "no row" if place is None else f"{place['score']:+.4g} ({place['rank']:,})"
