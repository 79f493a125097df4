"""What the HTML report carries: the view model with its large parts packed.

A report of 100 queries with 100 examples each has 640,000 scores of generated tokens and 2.5
million of training tokens. As JSON these are 50 MB that take a browser a second to read; here
they are two blocks of numbers behind a JSON text, and a text that several queries show is
written once. `unpack` in report.js is the reverse.

    4 bytes   length of the JSON text, little-endian
    JSON      ASCII, padded with spaces to a multiple of 4 with the length
    floats    float32, little-endian: `tokens`, and `training` unless it is rounded
    bytes     int8: `training`, where it is rounded, in steps of `step`
"""

import gzip
import io
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

_STEPS = 127


class _Packer:
    """Collects texts and numbers of all queries."""

    def __init__(self, *, rounded: bool) -> None:
        self._rounded = rounded
        self._places: dict[tuple[str, str | None], int] = {}
        self.texts: list[dict[str, Any]] = []
        self.floats: list[np.ndarray[Any, Any]] = []
        self.bytes: list[np.ndarray[Any, Any]] = []
        self._float_count = self._byte_count = 0

    def query(self, query: Mapping[str, Any]) -> dict[str, Any]:
        return {**query, "examples": [self._example(example) for example in query["examples"]]}

    def _example(self, example: Mapping[str, Any]) -> dict[str, Any]:
        packed = dict(example)
        training = packed.pop("training")
        learnt = None if training is None else [text for text, _ in training]
        packed["text"] = self._text(packed, learnt)
        packed["tokens"] = None if packed["tokens"] is None else self._add(packed["tokens"])
        packed["training"] = None
        if training is not None:
            scores = np.array([score for _, score in training], dtype=np.float64)
            rounded = self._rounded
            packed["training"] = self._add_rounded(scores, packed) if rounded else self._add(scores)
        return packed

    def _text(self, example: dict[str, Any], learnt: list[str] | None) -> int:
        """Move an example's texts to the table; return their place."""
        joined = None if learnt is None else "".join(learnt)
        key = example["digest"], joined
        text = {name: example.pop(name) for name in ("id", "rows", "prompt", "response")}
        if key not in self._places:
            self._places[key] = len(self.texts)
            start = (joined or "").find(text["response"])
            if joined is not None and start >= 0:
                # Its place among the learnt tokens, which mostly are the response.
                first, length = _units(joined[:start]), _units(text["response"])
                text["response"] = [first, first + length]
            cuts = [_units(part) for part in learnt or ()]
            self.texts.append({**text, "learnt": joined, "cuts": cuts})
        return self._places[key]

    def _add(self, scores: Any) -> int:
        self.floats.append(np.asarray(scores, dtype="<f4"))
        self._float_count += len(scores)
        return self._float_count - len(scores)

    def _add_rounded(self, scores: np.ndarray[Any, Any], example: dict[str, Any]) -> int:
        step = float(np.abs(scores).max(initial=0)) / _STEPS
        example["step"] = float(f"{step:.7g}")
        self.bytes.append(np.rint(scores / step if step else scores).astype(np.int8))
        self._byte_count += len(scores)
        return self._byte_count - len(scores)


def _units(text: str) -> int:
    """Length in UTF-16 units, as JavaScript counts."""
    return len(text.encode("utf-16-le", "surrogatepass")) // 2


def pack(report: Mapping[str, Any], *, rounded: bool) -> bytes:
    """Return a report for the page, compressed; the same report gives the same bytes.

    Args:
        rounded: scores of training tokens in 127 steps up to each example's largest.

    Raises:
        ValueError: a number is NaN or infinite.
    """
    packer = _Packer(rounded=rounded)
    queries = [packer.query(query) for query in report["queries"]]
    numbers = np.concatenate([*packer.floats, np.empty(0, "<f4")])
    if not np.isfinite(numbers).all():
        raise ValueError("Out of range float values are not JSON compliant")
    body = {**report, "queries": queries, "texts": packer.texts, "floats": len(numbers)}
    text = json.dumps(body, allow_nan=False, separators=(",", ":"), sort_keys=True).encode("ascii")
    text += b" " * (-len(text) % 4)
    content = [len(text).to_bytes(4, "little"), text, numbers.tobytes()]
    content += [part.tobytes() for part in packer.bytes]
    packed = io.BytesIO()
    # GzipFile and not gzip.compress: its header does not depend on the Python version.
    with gzip.GzipFile(filename="", mode="wb", fileobj=packed, mtime=0) as stream:
        stream.write(b"".join(content))
    return packed.getvalue()
