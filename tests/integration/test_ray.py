"""`rin cache --executor ray` on a real cluster of several raylets, one of which is killed."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from rapidin_cli import Project
from tests import tiny
from tests.forked import rin

ray = pytest.importorskip("ray")
cluster_utils = pytest.importorskip("ray.cluster_utils")

pytestmark = pytest.mark.filterwarnings("default")
ROOT = Path(__file__).parents[2]


@pytest.fixture
def cluster():
    made = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    yield made
    made.shutdown()


def start(folder, address, *options):
    return subprocess.Popen(
        [sys.executable, "-m", "rapidin_cli", "cache", "--executor", "ray", *options],
        cwd=folder,
        env={
            **os.environ,
            "RAY_ADDRESS": address,
            "PYTHONPATH": f"{ROOT}:{ROOT / 'storage'}",
        },
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def rows_of(folder):
    """Digest -> stored numbers."""
    snapshot = Project.open(folder).opened().cache.snapshot()
    values = snapshot.read(0, snapshot.commit.slots, ["sketch", "norm"])
    return {d: (values["sketch"][s], values["norm"][s]) for d, s in snapshot.index.items()}


def test_a_node_that_is_killed_loses_nothing(cluster, tmp_path):
    count = 400
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    folder = tiny.project(tmp_path / "project", count, batch_tokens=64, commit_seconds=0.05)
    process = start(folder, cluster.address, "--workers", "3")
    log = folder / ".rin/caches"
    while not list(log.glob("*/log/*.json")) and process.poll() is None:
        time.sleep(0.01)
    assert process.poll() is None, process.communicate()[1]
    cluster.remove_node(nodes[1], allow_graceful=False)
    _, talk = process.communicate(timeout=240)
    assert process.returncode == 0, talk
    assert f"{count} rows computed, {count} cached" in talk
    calm = tiny.project(tmp_path / "calm", count, batch_tokens=64)
    Project.open(calm).cache()
    found, expected = rows_of(folder), rows_of(calm)
    assert set(found) == set(expected)
    for digest, (sketch, norm) in expected.items():
        # To rounding: other numbers of threads may add in another order.
        np.testing.assert_allclose(found[digest][0], sketch.astype(float), atol=1)
        np.testing.assert_allclose(found[digest][1], norm, rtol=1e-4, atol=1e-6)


def test_what_a_worker_complains_of_is_what_is_said(cluster, tmp_path):
    folder = tiny.project(tmp_path / "project", 5)
    text = (folder / "rin.toml").read_text()
    (folder / "rin.toml").write_text(text.replace("[gradient]", '[gradient]\nlayers = "nothing"'))
    process = start(folder, cluster.address)
    _, talk = process.communicate(timeout=240)
    assert process.returncode == 4, talk
    assert "no trainable linear layer is matched by [gradient] layers = 'nothing'" in talk
    assert "Traceback" not in talk


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--executor", "nowhere"], "there is no executor 'nowhere'"),
        (["--executor", "ray", "--devices", "cpu"], "works on a cluster's"),
    ],
)
def test_an_executor_that_cannot_be_had_is_refused_at_once(tmp_path, options, said):
    done = rin(tiny.project(tmp_path / "project", 5), "cache", *options)
    assert done.returncode == 2
    assert said in done.stderr


def test_a_cluster_that_does_not_answer_is_one_sentence(tmp_path):
    process = start(tiny.project(tmp_path / "project", 5), "127.0.0.1:1")
    _, talk = process.communicate(timeout=240)
    assert process.returncode == 1, talk
    assert "there is no Ray cluster at 127.0.0.1:1: Connection refused" in talk
    assert "Traceback" not in talk
