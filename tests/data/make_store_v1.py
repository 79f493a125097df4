"""How tests/data/store-v1 was made, once. Later versions read it and never make it anew."""

import json
import sys
from pathlib import Path

import numpy as np

from rapidin_storage import ArraySpec, Cache, CacheWriter, cache_name, open_root
from rapidin_storage.sync import synchronise

ARRAYS = {
    "sketch": ArraySpec("int8", (16,)),
    "scale": ArraySpec("float32", (2,)),
    "loss": ArraySpec("float32"),
}
ID = cache_name({"checkpoint": "store-v1", "gradient": {"k": 16}})


def rows(start: int, stop: int) -> dict[str, np.ndarray]:
    """Rows whose content follows from their number."""
    numbers = np.arange(start, stop)
    return {
        "sketch": ((numbers[:, None] * 7 + np.arange(16)) % 127).astype(np.int8),
        "scale": np.stack([numbers / 8, numbers / 16], axis=1).astype(np.float32),
        "loss": (numbers / 4).astype(np.float32),
        "digest": np.stack(
            [np.frombuffer(int(n + 1).to_bytes(32, "big"), np.uint8) for n in numbers]
        ),
    }


def make(folder: Path) -> None:
    """Two commits of one writer, a third of another, and a merge with a second store."""
    root, other = open_root(folder / "root"), open_root(folder / "other")
    attributes = {"rin": {"made": "for store-v1"}}
    first = CacheWriter(Cache(root, ID), ARRAYS, attributes, 8)
    for stop in (5, 13):
        first.add(rows(0, stop))
        first.commit()
    one = CacheWriter(Cache(root, ID), ARRAYS, attributes, 8)
    two = CacheWriter(Cache(root, ID), ARRAYS, attributes, 8)
    one.add(rows(13, 20))
    two.add(rows(20, 25))
    one.commit()
    two.commit()
    elsewhere = CacheWriter(Cache(other, ID), ARRAYS, attributes, 8)
    elsewhere.add(rows(10, 40))
    elsewhere.commit()
    synchronise(Cache(other, ID), Cache(root, ID))
    log = Cache(root, ID).log
    expected = {
        "cache": ID,
        "commits": [
            {"digest": c.digest, "tree": c.tree, "rows": c.rows, "slots": c.slots}
            for c in log.read_all()
        ],
        "rows": [5, 13, 20, 25, 40],
    }
    (folder / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    make(Path(sys.argv[1]))
