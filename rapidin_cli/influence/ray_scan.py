"""The scan of cached rows on a Ray cluster: tasks score chunks, their best are merged here.

A cluster's nodes read the rows themselves, from a folder that they share or from the remote,
and keep nothing. Placement and retries are Ray's.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import ray
import torch

from rapidin_cli.influence import scan as local
from rapidin_cli.influence.ranking import Ranked
from rapidin_cli.influence.score import SCORES, Array, Score
from rapidin_cli.work.ray_pool import connect, result_of
from rapidin_storage import ObjectStore, Snapshot

# Tasks for each core of the cluster: a late one keeps few waiting.
_EACH = 4
_CPU = torch.device("cpu")


def scan(
    rows: local.CachedRows,
    directions: Sequence[torch.Tensor],
    score: Score,
    wanted: Array,
    top: int,
    token_top: int,
) -> list[Ranked]:
    """Do the same as `scan.scan` on the cluster of RAY_ADDRESS, or on one that is started here.

    The connection to it stays for the next scan, until the process ends.

    Raises:
        RinError, StorageError: as a task raised it; no such cluster; or a task's processes died
            whenever it was tried.
    """
    connect()
    cluster: Any = ray  # half of its functions have no types
    cores = int(cluster.cluster_resources().get("CPU", 1))
    objects = rows.snapshot.objects
    store = ObjectStore(objects.root, [part.root for part in objects.upstreams], keep=False)
    snapshot = Snapshot(store, rows.snapshot.commit)
    what = cluster.put((snapshot, rows.kind, list(directions), score.name, top, token_top))
    task = cluster.remote(num_cpus=1)(_best)
    slots = np.flatnonzero(wanted)
    chunk_of = slots // snapshot.commit.chunk_rows
    chunks = np.unique(chunk_of)
    tasks = min(len(chunks), _EACH * cores)
    firsts = [part[0] for part in np.array_split(chunks, tasks)[1:]] if tasks else []
    places = np.split(slots, np.searchsorted(chunk_of, firsts))
    waiting = [task.remote(what, some) for some in places]
    found = [Ranked.nothing(len(wanted), len(part)) for part in directions]
    for some, result in zip(places, waiting, strict=True):
        for number, of_part in enumerate(result_of(result)):
            found[number] = found[number].joined(some, of_part, top, token_top)
    return found


def _best(what: Any, slots: Array) -> list[Ranked]:
    """The far side: scan some slots; totals and sizes of what is returned count these."""
    snapshot, kind, directions, score, top, token_top = what
    wanted = np.zeros(snapshot.commit.slots, bool)
    wanted[slots] = True
    rows = local.CachedRows(snapshot, kind, "disk", _CPU)
    found = local.scan(rows, directions, SCORES[score], wanted, top, token_top)
    return [replace(one, totals=one.totals[slots], sizes=one.sizes[slots]) for one in found]
