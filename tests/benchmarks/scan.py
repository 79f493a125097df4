"""How fast cached rows are scanned, against reading the same bytes.

    python tests/benchmarks/scan.py FOLDER [--scale 0.1] [--json FILE]

Writes synthetic rows into real stores below FOLDER (kept there for the next run): 1,000,000 sign
rows and 100,000 int8 rows of 65,536 numbers, and 100,000 factor rows of ranks 1 and 4 in 4 bits,
all for 210 layers; `--scale` takes a part of each. Then, in turn and for one query, a query of
64 tokens, and 16 queries: the time of a scan of the files

- cold, after the page cache was dropped for them, over that of `cat FILES > /dev/null`, cold;
- warm, over that of summing as many bytes in memory, with as many threads;
- held in memory, over the same.

`layers` weighs each layer of each row (dot, ekfac); `plain` does not (rapidin). Every store is read
once before, so that its files are known to be whole. Of each kind the median of the rounds.
"""

import argparse
import itertools
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import torch

from rapidin_cli.gradients.layout import Layer, RowLayout
from rapidin_cli.gradients.rows.kinds import row_kind
from rapidin_cli.gradients.spec import GradientSpec
from rapidin_cli.influence.scan import CachedRows, scan
from rapidin_cli.influence.score import SCORES
from rapidin_cli.work.caching import chunk_rows
from rapidin_storage import Cache, CacheWriter, Snapshot, cache_name, open_root

LAYERS, SIDE = 210, 64
QUERY_RANK = 16
CPU = torch.device("cpu")
SCORE = {"plain": SCORES["rapidin"], "layers": SCORES["dot"]}
KINDS = {
    "sign": (GradientSpec(precision="sign"), 1_000_000),
    "int8": (GradientSpec(), 100_000),
    "factors 1": (GradientSpec(row="factors", rank=1, precision="int4"), 100_000),
    "factors 4": (GradientSpec(row="factors", rank=4, precision="int4"), 100_000),
}


QUESTIONS = {"1 query": [1], "64 tokens": [65], "16 queries": [1] * 16}


def layout_of(spec: GradientSpec) -> RowLayout:
    layers = tuple(Layer(f"layer {n}", SIDE, SIDE) for n in range(LAYERS))
    each = spec.dimensions // LAYERS // 16 * 16 if spec.row == "sketch" else 2 * SIDE * spec.rank
    return RowLayout(spec, layers, (each,) * LAYERS)


def store(folder: Path, name: str, spec: GradientSpec, count: int) -> Snapshot:
    """The rows, written if they are not there yet: numbers are normal, as real ones nearly are."""
    layout = layout_of(spec)
    arrays = row_kind(layout).arrays()
    root = open_root(folder)
    root.prepare()
    cache = Cache(root, cache_name({"bench": name, "rows": count}))
    rows = chunk_rows(sum(array.row_bytes for array in arrays.values()))
    writer = CacheWriter(cache, arrays, {}, rows)
    known = cache.snapshot()
    done = known.commit.rows if known else 0
    draw = np.random.default_rng(done)
    while done < count:
        n = min(rows, count - done)
        made: dict[str, Any] = {}
        for key, array in arrays.items():
            shape = (n, *array.row_shape)
            if array.dtype == "int8":
                made[key] = (draw.standard_normal(shape, np.float32) * 29).clip(-127, 127)
                made[key] = made[key].astype(np.int8)
            elif array.dtype == "uint8":
                made[key] = draw.integers(0, 256, shape, np.uint8)
            else:
                made[key] = np.ones(shape, array.dtype)
        numbers = np.arange(done, done + n, dtype=">u8")
        made["digest"] = np.zeros((n, 32), np.uint8)
        made["digest"][:, :8] = numbers.view(np.uint8).reshape(n, 8)
        made["digest"][:, 31] = 1
        writer.add(made)
        done += n
        if writer.new_rows >= 16 * rows:
            writer.commit()
            print(f"{name}: {done:,} of {count:,} rows written", file=sys.stderr, flush=True)
    writer.commit()
    snapshot = cache.snapshot()
    assert snapshot is not None
    return snapshot


def files(snapshot: Snapshot, folder: Path, names: tuple[str, ...]) -> list[Path]:
    """What a scan reads."""
    found = []
    for number in range(snapshot.manifest.chunk_count):
        refs = snapshot.manifest.chunk(number)
        digests = {refs[name].digest for name in names}
        found += [folder / "objects/sha256" / d[:2] / d for d in sorted(digests)]
    return found


def drop(paths: list[Path]) -> None:
    """Put files out of the page cache."""
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def cat(paths: list[Path]) -> None:
    with Path(os.devnull).open("wb") as nowhere:
        for first in range(0, len(paths), 500):
            names = map(str, paths[first : first + 500])
            subprocess.run(["cat", *names], stdout=nowhere, check=True)


def memory_pass(size: int, threads: int) -> Callable[[], None]:
    """Sums as many bytes, in pieces that no core's cache holds, with so many threads."""
    piece = np.ones(2**25, np.uint64)
    whole, rest = divmod(size // threads, piece.nbytes)

    def work() -> None:
        for _ in range(whole):
            piece.sum()
        piece[: rest // 8].sum()

    def run() -> None:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(lambda _: work(), range(threads)))

    return run


def timed(work: Callable[..., object], *what: object) -> float:
    start = time.perf_counter()
    work(*what)
    return time.perf_counter() - start


def compare(
    run: Callable[[CachedRows], object],
    disk: CachedRows,
    held: CachedRows | None,
    paths: list[Path],
    rounds: int,
) -> dict[str, float]:
    """Medians of the ratios, and of the seconds of a warm scan."""
    memory = memory_pass(sum(p.stat().st_size for p in paths), torch.get_num_threads())
    found: dict[str, list[float]] = {"cold": [], "warm": [], "held": [], "seconds": []}
    if held is not None:
        run(held)
    for _ in range(rounds):
        drop(paths)
        reading = timed(cat, paths)
        drop(paths)
        found["cold"].append(timed(run, disk) / reading)
        plain = timed(memory)
        seconds = timed(run, disk)
        found["warm"].append(seconds / plain)
        found["seconds"].append(seconds)
        if held is not None:
            found["held"].append(timed(run, held) / plain)
    return {name: round(statistics.median(values), 2) for name, values in found.items() if values}


def measure(
    name: str, snapshot: Snapshot, folder: Path, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """All questions to one kind of rows."""
    layout = layout_of(KINDS[name][0])
    kind = row_kind(layout)
    paths = files(snapshot, folder, kind.scored)
    size = sum(path.stat().st_size for path in paths)
    wanted = np.ones(snapshot.commit.slots, bool)
    width = sum(layout.blocks)
    if layout.spec.row == "factors":
        width = QUERY_RANK * sum(map(sum, layout.sides))
    results = []
    for what, how in itertools.product(options.questions, options.how):
        directions = [torch.randn(count, width) for count in QUESTIONS[what]]

        def run(rows: CachedRows, directions: Any = directions, how: str = how) -> None:
            scan(rows, directions, SCORE[how], wanted, 40, 20)

        disk = CachedRows(snapshot, kind, "disk", CPU)
        small = size < options.hold * 1e9
        held = CachedRows(snapshot, kind, "cpu", CPU) if small else None
        medians = compare(run, disk, held, paths, options.rounds)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        results.append(
            {"rows": name, "what": what, "how": how, "bytes": size, **medians, "peak_rss": peak}
        )
        known = [k for k in ("cold", "warm", "held") if k in medians]
        ratios = "  ".join(f"{k} {medians[k]:6.2f}" for k in known)
        print(
            f"{name:10} {len(wanted):9,} rows {size / 1e9:5.2f} GB  {what:10} {how:6}  {ratios}"
            f"  ({medians['seconds']:.1f} s warm; peak {peak / 1e6:,.0f} MB)",
            flush=True,
        )
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS))
    parser.add_argument("--questions", nargs="+", default=list(QUESTIONS))
    parser.add_argument("--how", nargs="+", default=list(SCORE))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--hold", type=float, default=0, help="also hold stores of less GB")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results = []
    for name in options.kinds:
        spec, count = KINDS[name]
        folder = options.folder / name.replace(" ", "-")
        snapshot = store(folder, name, spec, round(count * options.scale))
        kind = row_kind(layout_of(spec))
        for _ in snapshot.stream(kind.scored):
            pass
        results += measure(name, snapshot, folder, options)
    machine = {
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "threads": options.threads,
    }
    print(json.dumps(machine))
    if options.json:
        options.json.write_text(json.dumps({**machine, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
