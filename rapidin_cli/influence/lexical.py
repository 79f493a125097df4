"""BM25 beside every ranking: which training texts merely share words with the query."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import bm25s
import numpy as np

from rapidin_cli.data.examples import Dataset, Example
from rapidin_cli.data.token_store import EncodedRows

MOST_TEXT = 2**28
"""Texts of more bytes are not indexed."""

Array = np.ndarray[Any, Any]


class Lexical:
    """BM25 scores (Robertson et al.; the `bm25s` library's defaults) of training texts.

    Args:
        examples: whose texts.
        folder: where the index is kept; once it exists, it is read instead of the texts.
    """

    def __init__(self, examples: Iterable[Example], folder: Path | None = None) -> None:
        self._index = None if folder is None else _load(folder)
        if self._index is not None:
            return
        texts = [_text(example) for example in examples]
        self._count = len(texts)
        tokens = bm25s.tokenize(texts, stopwords=None, show_progress=False)
        if tokens.vocab:
            self._index = bm25s.BM25()
            self._index.index(tokens, show_progress=False)
            if folder is not None:
                _save(self._index, folder)

    @classmethod
    def of(cls, dataset: Dataset) -> Lexical | None:
        """Return the index of a dataset's distinct examples; None for too much text.

        A library's index needs ten times the texts' bytes while it is made.
        """
        rows = dataset.examples
        firsts = (dataset.distinct[number][0] for number in range(len(dataset.distinct)))
        if not isinstance(rows, EncodedRows):
            return cls(firsts)
        if rows.text_bytes > MOST_TEXT:
            return None
        return cls(firsts, rows.folder / "bm25")

    def scores(self, example: Example) -> Array:
        """Return the score of every training text for a query's prompt and response, (N,)."""
        words = bm25s.tokenize(
            [_text(example)], stopwords=None, show_progress=False, return_ids=False
        )[0]
        if self._index is None:
            return np.zeros(self._count, dtype=np.float32)
        if not words:
            return np.zeros(self._index.scores["num_docs"], dtype=np.float32)
        return np.asarray(self._index.get_scores(words), dtype=np.float32)


def _load(folder: Path) -> Any:
    if not folder.is_dir():
        return None
    try:
        return bm25s.BM25.load(folder, mmap=True)
    except (OSError, ValueError, KeyError):
        return None


def _save(index: Any, folder: Path) -> None:
    temporary = folder.with_name(f"bm25-{os.getpid()}.new")
    try:
        index.save(temporary, show_progress=False)
        temporary.rename(folder)
    except OSError:  # another process's is there, or the disk is full: it is only slower
        shutil.rmtree(temporary, ignore_errors=True)


def _text(example: Example) -> str:
    return f"{example.row.prompt}\n{example.row.response}"
