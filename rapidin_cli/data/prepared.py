"""Rows that a trainer has prepared: token ids with labels, packs of them, labelled passages."""

from itertools import accumulate, pairwise
from typing import Any

from rapidin_cli.data.examples import IGNORED
from rapidin_cli.data.files import RowError
from rapidin_cli.data.rows import DataSettings, Extras, Message, Row, text_of

_MASKS = ("completion_mask", "assistant_masks")
TOKEN_FIELDS = ("labels", "attention_mask", *_MASKS, "position_ids", "seq_lengths")

Parts = tuple[str, str, tuple[Message, ...] | None, dict[str, str], dict[str, Any]]


def parse_parts(value: dict[str, Any], settings: DataSettings) -> Parts:
    """Read axolotl's `segments`: texts that are joined as they are, each learnt or not.

    Raises:
        RowError: they are not texts with a `label` that is true or false.
    """
    parts: list[tuple[str, bool]] = []
    for number, part in enumerate(value.get("segments") or ()):
        if not isinstance(part, dict) or not isinstance(part.get("label"), bool):
            raise RowError(f"segments[{number}] must have a 'text', and a 'label' true or false")
        learnt = part["label"] or settings.learn == "all"
        parts.append((text_of(part, "text", empty=True), learnt))
    said = "".join(text for text, learnt in parts if learnt)
    if not said:
        raise RowError("no segment is learnt")
    context = "".join(text for text, learnt in parts if not learnt)
    return context, said, None, {}, {Extras.PARTS: [list(part) for part in parts]}


def parse_tokens(value: dict[str, Any], settings: DataSettings) -> Parts:
    """Read `input_ids` with `labels`, as training made them: nothing is cut or added.

    Without `labels`, the masks of TRL say what is learnt; without those, every token is.

    Raises:
        RowError: they are no lists of whole numbers of one length, or labels are other tokens.
    """
    ids = _numbers(value, "input_ids")
    if not ids:
        raise RowError("field 'input_ids' is empty")
    given = {
        name: _numbers(value, name, len(ids))
        for name in ("labels", "attention_mask", *_MASKS)
        if value.get(name) is not None and name not in settings.ignore_fields
    }
    labels = given.get("labels")
    if labels is None:
        masks = [given[name] for name in _MASKS if name in given]
        labels = [
            token if all(mask[n] for mask in masks) else IGNORED for n, token in enumerate(ids)
        ]
    if wrong := [n for n, label in enumerate(labels) if label not in (IGNORED, ids[n])]:
        raise RowError(
            f"labels[{wrong[0]}] is neither {IGNORED} nor its token: labels must not be shifted"
        )
    extras: dict[str, Any] = {}
    if any(field in value for field in ("position_ids", "seq_lengths")):
        extras["lengths"] = _lengths(value, len(ids), settings)
    real = given.get("attention_mask")
    if real is not None and "lengths" not in extras:  # padding
        ids = [token for token, kept in zip(ids, real, strict=True) if kept]
        labels = [label for label, kept in zip(labels, real, strict=True) if kept]
    return "", "", None, {}, {Extras.TOKENS: [ids, labels], **extras}


def _numbers(value: dict[str, Any], name: str, length: int | None = None) -> list[int]:
    found = value.get(name)
    if not isinstance(found, list) or not all(type(each) is int for each in found):
        raise RowError(f"field {name!r} must be a list of whole numbers")
    if length is not None and len(found) != length:
        raise RowError(f"field {name!r} has {len(found)} entries for {length} tokens")
    return found


def _lengths(value: dict[str, Any], total: int, settings: DataSettings) -> list[int]:
    """The lengths of the sequences of a pack."""
    if value.get("seq_lengths") is not None and "seq_lengths" not in settings.ignore_fields:
        lengths = _numbers(value, "seq_lengths")
        if sum(lengths) != total or min(lengths, default=0) < 1:
            raise RowError(f"field 'seq_lengths' does not add up to {total} tokens")
        return lengths
    if value.get("position_ids") is None or "position_ids" in settings.ignore_fields:
        return [total]
    places = _numbers(value, "position_ids", total)
    starts = [n for n, place in enumerate(places) if place == 0]
    if not starts or starts[0] != 0:
        raise RowError("field 'position_ids' does not begin with 0")
    return [stop - start for start, stop in pairwise([*starts, total])]


def unpacked(row: Row) -> list[Row]:
    """Return the rows of a pack, named ID/1, ID/2 ...; any other row as it is.

    The first token of a sequence has no loss: in a pack, too, trainers do not learn it from the
    sequence before.
    """
    lengths = row.extras.get("lengths")
    if lengths is None:
        return [row]
    ids, labels = row.extras[Extras.TOKENS]
    ends = [0, *accumulate(lengths)]
    found = []
    for number, (start, stop) in enumerate(pairwise(ends), 1):
        name = row.id if len(lengths) == 1 else f"{row.id}/{number}"
        tokens = {Extras.TOKENS: [ids[start:stop], labels[start:stop]]}
        found.append(Row(row.file, row.line, name, "", "", None, {}, tokens))
    return found
