"""BM25 beside every ranking: which training texts merely share words with the query."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import bm25s
import numpy as np

from rapidin_cli.data.examples import Example

Array = np.ndarray[Any, Any]


class Lexical:
    """BM25 scores (Robertson et al.; the `bm25s` library's defaults) of training texts."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self._count = len(examples)
        self._index = None
        tokens = bm25s.tokenize(
            [_text(example) for example in examples], stopwords=None, show_progress=False
        )
        if tokens.vocab:
            self._index = bm25s.BM25()
            self._index.index(tokens, show_progress=False)

    def scores(self, example: Example) -> Array:
        """Return the score of every training text for a query's prompt and response, (N,)."""
        words = bm25s.tokenize(
            [_text(example)], stopwords=None, show_progress=False, return_ids=False
        )[0]
        if self._index is None or not words:
            return np.zeros(self._count, dtype=np.float32)
        return np.asarray(self._index.get_scores(words), dtype=np.float32)


def _text(example: Example) -> str:
    return f"{example.row.prompt}\n{example.row.response}"
