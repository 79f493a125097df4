"""The text of single tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def token_texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """Return the text that each token adds; a character of several tokens goes to its last."""
    texts = []
    shown = ""
    for count in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[:count], clean_up_tokenization_spaces=False)
        if text.endswith("\ufffd") and count < len(ids):
            texts.append("")
            continue
        texts.append(text[len(shown) :])
        shown = text
    return texts
