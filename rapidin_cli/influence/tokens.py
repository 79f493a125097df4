"""The text of single tokens."""

from collections.abc import Sequence
from typing import Any

# Tokens are decoded in the company of a few before them: alone they would lose their spaces,
# and with all before them a text of n tokens would take n^2 / 2.
_LONGEST, _KEPT = 24, 8


def token_texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """Return the text that each token adds; a character of several tokens goes to its last."""

    def decode(first: int, last: int) -> str:
        return str(tokenizer.decode(ids[first:last], clean_up_tokenization_spaces=False))

    texts = []
    start, shown = 0, ""
    for count in range(1, len(ids) + 1):
        text = decode(start, count)
        if text.endswith("\ufffd") and count < len(ids):
            texts.append("")
            continue
        texts.append(text[len(shown) :])
        shown = text
        if count - start >= _LONGEST:
            start = count - _KEPT
            shown = decode(start, count)
    return texts
