"""From a report to action: the training data without the rows found, only those, or weighted.

Rows are looked up by file and line, and only if their text has not changed since they were
scored: a file that has changed is refused, never cut at the wrong place.
"""

import csv
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rapidin_cli.data.reading import read_pairs
from rapidin_cli.data.rows import HALF_PAIR, BadRow, DataSettings, Extras, Row
from rapidin_cli.errors import InputError, UsageError
from rapidin_cli.report.span import parse_span, selected
from rapidin_cli.report.tables import SIDES, csv_text, ranked
from rapidin_cli.report.writing import save_page

View = Mapping[str, Any]
Place = tuple[str, int]

KEEP, DROP = "keep", "drop"
WEIGHT_FIELD = "weight"
COLUMNS = (
    "decision",
    "side",
    "rank",
    "score",
    "query",
    "copies",
    "id",
    "file",
    "line",
    "text_sha256",
    "prompt",
    "response",
)


@dataclass(frozen=True)
class Written:
    """What `write_rows` wrote.

    Attributes:
        rows: in the new file.
        changed: of the rows that were found: left out, written, or given a weight.
        broken: places of lines that are no JSON objects and could not be written.
    """

    rows: int
    changed: int
    broken: list[str]


@dataclass(frozen=True)
class Wanted:
    """Which rows of a result.

    Attributes:
        query: only of this one; empty for all.
        token: rank by a span of the response, see `parse_span`.
        side: `raised`, `lowered` or `both`.
        top: examples of each query and side.
    """

    query: str = ""
    token: str = ""
    side: str = "raised"
    top: int = 50


def found(report: View, wanted: Wanted) -> list[dict[str, Any]]:
    """Return the rows that a result found.

    Raises:
        InputError: there is no such query. UsageError: no such side.
    """
    if wanted.side not in (*SIDES, "both"):
        raise UsageError(f"there is no side {wanted.side!r}", hint="use raised, lowered or both")
    return found_rows(selected(report, wanted.query), wanted.side, wanted.top, wanted.token)


def write_review(rows: Sequence[dict[str, Any]], path: Path) -> int:
    """Write rows that a result found as a list to edit; return how many.

    Raises:
        InputError: the file exists, or cannot be written.
    """
    if path.exists():
        raise _there(path)
    save_page(csv_text(COLUMNS, iter(rows)), path, force=False)
    return len(rows)


def found_rows(report: View, side: str, top: int, token: str = "") -> list[dict[str, Any]]:
    """Return the rows of the best examples of every query, each once, the best ranks first.

    Args:
        side: `raised`, `lowered` or `both`.
        top: examples of each query and side.
        token: rank by a span of the response, see `parse_span`.
    """
    sides = SIDES if side == "both" else (side,)
    best: dict[Place, dict[str, Any]] = {}
    for query in report["queries"]:
        span = parse_span(token, query)
        order = ranked(query, span)
        for name in sides:
            for rank, example in enumerate(order[name][:top], 1):
                for row in example["rows"]:
                    found = {
                        "decision": KEEP,
                        "side": name,
                        "rank": rank,
                        "score": span.score(example),
                        "query": query["id"],
                        "copies": len(example["rows"]),
                        **row,
                        "text_sha256": _text_digest(example["prompt"], example["response"]),
                        "prompt": example["prompt"],
                        "response": example["response"],
                    }
                    place = row["file"], row["line"]
                    if place not in best or rank < best[place]["rank"]:
                        best[place] = found
    return sorted(best.values(), key=lambda row: (row["rank"], row["file"], row["line"]))


def _text_digest(prompt: str, response: str) -> str:
    text = json.dumps([prompt, response]).encode("ascii")
    return hashlib.sha256(text).hexdigest()[:16]


def read_review(path: Path) -> list[dict[str, Any]]:
    """Return the rows of an edited review list that are to be dropped.

    Raises:
        InputError: it is not a review list, or a decision is neither keep nor drop.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(
            f"cannot read {path}: {error}", hint="rin export --review RESULT --out review.csv"
        ) from None
    dropped = []
    for number, line in enumerate(lines, 2):
        decision = (line.get("decision") or "").strip().lower()
        if decision not in ("", KEEP, DROP):
            raise InputError(
                f"{path}:{number}: decision {decision!r} is neither keep nor drop",
                hint=f"write keep or drop in the column decision of {path}",
            )
        try:
            place = {"file": line["file"], "line": int(line["line"])}
            row = {**place, "text_sha256": line["text_sha256"]}
        except (KeyError, TypeError, ValueError):
            raise InputError(
                f"{path}:{number} lacks file, line or text_sha256: it is not a review list",
                hint="rin export --review RESULT --out review.csv makes one",
            ) from None
        if decision == DROP:
            dropped.append(row)
    return dropped


def write_rows(
    root: Path,
    settings: DataSettings,
    found: list[dict[str, Any]],
    change: Callable[[dict[str, Any], bool], dict[str, Any] | None],
    path: Path,
) -> Written:
    """Write the training data with a change to a new JSONL file.

    Args:
        root, settings: of the project.
        found: rows of a result or of a review list.
        change: takes a row of the data and whether it was found; returns what to write, or
            None for nothing.
        path: the new file.

    Raises:
        InputError: the file exists, or the data has changed since it was scored.
    """
    wanted = {(row["file"], row["line"]): row["text_sha256"] for row in found}
    unknown = sorted({file for file, _ in wanted} - set(settings.files))
    if unknown:
        raise InputError(
            f"the rows are from {unknown[0]}, which [data] files does not list",
            hint="use the rin.toml that the result was made with",
        )
    rows = changed = 0
    broken: list[str] = []
    try:
        out = path.open("x", encoding="utf-8")
    except FileExistsError:
        raise _there(path) from None
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {error.strerror}", hint="choose another file for --out"
        ) from None
    try:
        with out:
            for value, read in read_pairs(root, settings):
                row = read[0]
                place = row.file, row.line
                was_found = place in wanted
                if was_found:
                    if _digest_of(row) != wanted.pop(place):
                        raise _moved(place)
                    changed += 1
                if not isinstance(value, dict):
                    broken.append(f"{place[0]}:{place[1]}")
                    continue
                kept = change(value, was_found)
                if kept is not None:
                    out.write(f"{_line(kept)}\n")
                    rows += 1
        if wanted:
            raise _moved(min(wanted))
    except BaseException:
        path.unlink()
        raise
    return Written(rows, changed, broken)


def _there(path: Path) -> InputError:
    return InputError(f"{path} already exists", hint="choose another file for --out")


def _line(row: dict[str, Any]) -> str:
    text = json.dumps(row, ensure_ascii=False)
    # Half a surrogate pair is not text, but JSON can express it.
    return json.dumps(row) if HALF_PAIR.search(text) else text


def _digest_of(row: Row | BadRow) -> str:
    if not isinstance(row, Row):
        return ""
    if Extras.TOKENS in row.extras:
        raise InputError(
            f"{row.file}:{row.line} holds tokens, not text: rin cannot tell whether it has changed "
            "since it was scored",
            hint="rin export --csv lists the rows, to leave them out by hand",
        )
    return _text_digest(row.prompt, row.response)


def _moved(place: Place) -> InputError:
    return InputError(
        f"{place[0]}:{place[1]} is not the row that was scored: the data has changed since",
        hint="rin cache, then rin retrieve again",
    )


def without(row: dict[str, Any], found: bool) -> dict[str, Any] | None:
    """Leave the found rows out."""
    return None if found else row


def only(row: dict[str, Any], found: bool) -> dict[str, Any] | None:
    """Leave out all others."""
    return row if found else None


CHANGES = {"drop": without, "only": only, "reviewed": without}


def weighted(weight: float) -> Callable[[dict[str, Any], bool], dict[str, Any] | None]:
    """Give every row a weight: 1, and another one for those found."""

    def change(row: dict[str, Any], found: bool) -> dict[str, Any] | None:
        if WEIGHT_FIELD in row:
            raise InputError(
                f"the data already has a field {WEIGHT_FIELD!r}", hint="rename it in the data"
            )
        return {**row, WEIGHT_FIELD: weight if found else 1.0}

    return change
