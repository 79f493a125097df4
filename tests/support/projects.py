"""Facts of a project on disk."""

import json

import numpy as np

from rapidin_cli import Project
from tests.support.forked import rin


def stored_rows(folder):
    """Digest -> all stored values of the newest snapshot."""
    opened = Project.open(folder).opened()
    snapshot = opened.cache.snapshot()
    values = snapshot.read(0, snapshot.commit.slots, ["sketch", "scale", "norm", "loss", "tokens"])
    return {
        digest: tuple(np.asarray(array[slot]).tobytes() for array in values.values())
        for digest, slot in snapshot.index.items()
    }


def status(folder, *options):
    done = rin(folder, "status", "--json", "--exit-code", *options)
    return done.returncode, json.loads(done.stdout)["checkpoints"][0]
