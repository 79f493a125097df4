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
    sequences = _sequences(value, len(ids), given.get("attention_mask"), settings)
    if sequences is None:
        return "", "", None, {}, {Extras.TOKENS: [ids, labels]}
    kept = [n for part in sequences for n in part]
    tokens = [[ids[n] for n in kept], [labels[n] for n in kept]]
    lengths = [len(part) for part in sequences]
    extras: dict[str, Any] = {Extras.LENGTHS: lengths} if len(lengths) > 1 else {}
    return "", "", None, {}, {Extras.TOKENS: tokens, **extras}


def _numbers(value: dict[str, Any], name: str, length: int | None = None) -> list[int]:
    found = value.get(name)
    if not isinstance(found, list) or not all(type(each) is int for each in found):
        raise RowError(f"field {name!r} must be a list of whole numbers")
    if length is not None and len(found) != length:
        raise RowError(f"field {name!r} has {len(found)} entries for {length} tokens")
    return found


def _sequences(
    value: dict[str, Any], total: int, mask: list[int] | None, settings: DataSettings
) -> list[list[int]] | None:
    """The places of the tokens of each sequence of a pack, without padding; None: it is none.

    Told by TRL's `seq_lengths`, by an `attention_mask` that numbers the sequences, or by
    `position_ids` that begin again.
    """
    lengths = positions = None
    if value.get("seq_lengths") is not None and "seq_lengths" not in settings.ignore_fields:
        lengths = _numbers(value, "seq_lengths")
        if sum(lengths) != total or min(lengths, default=0) < 1:
            raise RowError(f"field 'seq_lengths' does not add up to {total} tokens")
    elif mask is not None and max(mask) > 1:
        positions = [int(n == 0 or mask[n] != mask[n - 1]) for n in range(total)]
    elif value.get("position_ids") is not None and "position_ids" not in settings.ignore_fields:
        places = _numbers(value, "position_ids", total)
        if places[0] != 0:
            raise RowError("field 'position_ids' does not begin with 0")
        positions = [int(place == 0) for place in places]
    if lengths is None and positions is None and mask is None:
        return None
    if lengths is not None:
        ends = list(accumulate(lengths))
        parts = [list(range(end - size, end)) for end, size in zip(ends, lengths, strict=True)]
    else:
        starts = [n for n, first in enumerate(positions or [1] + [0] * (total - 1)) if first]
        parts = [list(range(*pair)) for pair in pairwise([*starts, total])]
    real = [[n for n in part if mask is None or mask[n]] for part in parts]
    return [part for part in real if part]


def unpacked(row: Row) -> list[Row]:
    """Return the rows of a pack, named ID/1, ID/2 ...; any other row as it is.

    The first token of a sequence has no loss: in a pack, too, trainers do not learn it from the
    sequence before.
    """
    lengths = row.extras.get(Extras.LENGTHS)
    if lengths is None:
        return [row]
    ids, labels = row.extras[Extras.TOKENS]
    ends = [0, *accumulate(lengths)]
    found = []
    for number, (start, stop) in enumerate(pairwise(ends), 1):
        tokens = {Extras.TOKENS: [ids[start:stop], labels[start:stop]]}
        found.append(Row(row.file, row.line, f"{row.id}/{number}", "", "", None, {}, tokens))
    return found
