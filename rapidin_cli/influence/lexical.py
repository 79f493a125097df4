"""BM25 beside every ranking: which training texts merely share words with the query."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rapidin_cli.data.examples import Dataset, Example
from rapidin_cli.data.token_store import EncodedRows

MOST_TEXT = 2**28
"""Texts of more bytes are not indexed."""

Array = np.ndarray[Any, Any]

# What the library takes for words, after lower().
_WORD = re.compile(r"(?u)\b\w\w+\b")


@dataclass(frozen=True)
class _Index:
    """The library's index: of each word, the scores of the texts that have it (columns of CSC)."""

    words: Mapping[str, int]
    starts: Array
    texts: Array
    scores: Array
    count: int


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
        self._index = _made(texts, folder)

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
        index = self._index
        if index is None:
            return np.zeros(self._count, dtype=np.float32)
        found = np.zeros(index.count, dtype=np.float32)
        for word in _WORD.findall(_text(example).lower()):
            number = index.words.get(word)
            if number is not None:
                column = slice(index.starts[number], index.starts[number + 1])
                found[index.texts[column]] += index.scores[column]
        return found


def _made(texts: list[str], folder: Path | None) -> _Index | None:
    """Index texts, and keep the index; None if they have no words."""
    import bm25s  # here: with Numba installed it takes half a second, and most questions find one

    tokens = bm25s.tokenize(texts, stopwords=None, show_progress=False)
    if not tokens.vocab:
        return None
    index = bm25s.BM25()
    index.index(tokens, show_progress=False)
    if folder is not None:
        _save(index, folder)
    made = index.scores
    return _Index(index.vocab_dict, made["indptr"], made["indices"], made["data"], made["num_docs"])


def _load(folder: Path) -> _Index | None:
    """Read what `BM25.save` wrote, without the library; None if it is anything else."""
    try:
        count = json.loads((folder / "params.index.json").read_text(encoding="utf-8"))["num_docs"]
        words = json.loads((folder / "vocab.index.json").read_text(encoding="utf-8"))
        starts, texts, scores = (
            np.load(folder / f"{name}.csc.index.npy", mmap_mode="r")
            for name in ("indptr", "indices", "data")
        )
        return _Index(words, starts, texts, scores, count)
    except (OSError, ValueError, KeyError, TypeError):
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
