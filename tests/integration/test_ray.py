"""`--executor ray` on a real cluster of several raylets, one of which is killed."""

import importlib
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from rapidin_cli import Project
from rapidin_cli.gradients.layout import RowLayout
from rapidin_cli.gradients.rows.kinds import row_kind
from rapidin_cli.gradients.spec import GradientSpec
from rapidin_cli.influence.scan import CachedRows, scan
from rapidin_cli.influence.score import SCORES
from rapidin_storage import StorageError
from rapidin_storage.objects import object_path
from tests.support import forked, tiny
from tests.support.forked import rin

ray = pytest.importorskip("ray")
cluster_utils = pytest.importorskip("ray.cluster_utils")
ray_scan = importlib.import_module("rapidin_cli.influence.ray_scan")

pytestmark = pytest.mark.filterwarnings("default")
ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def cluster():
    """Two nodes. A test that kills one adds it first."""
    made = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    made.add_node(num_cpus=1)
    yield made
    made.shutdown()


def start(folder, address, *options, command="cache"):
    path = f"{ROOT}:{ROOT / 'storage'}"
    asked = [command, "--executor", "ray", *options]
    return forked.start(folder, *asked, RAY_ADDRESS=address, PYTHONPATH=path)


def rows_of(folder):
    """Digest -> stored numbers."""
    snapshot = Project.open(folder).opened().cache.snapshot()
    values = snapshot.read(0, snapshot.commit.slots, ["sketch", "norm"])
    return {d: (values["sketch"][s], values["norm"][s]) for d, s in snapshot.index.items()}


def test_a_node_that_is_killed_loses_nothing(cluster, tmp_path):
    count = 200
    node = cluster.add_node(num_cpus=1)
    folder = tiny.project(tmp_path / "project", count, batch_tokens=64, commit_seconds=0.05)
    run = start(folder, cluster.address, "--workers", "3")
    log = folder / ".rin/caches"
    while not list(log.glob("*/log/*.json")) and run.process.is_alive():
        time.sleep(0.01)
    assert run.process.is_alive(), run.ended().stderr
    cluster.remove_node(node, allow_graceful=False)
    done = run.ended(240)
    assert done.returncode == 0, done.stderr
    assert f"{count} rows computed, {count} cached" in done.stderr
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
    done = start(folder, cluster.address).ended(240)
    assert done.returncode == 4, done.stderr
    assert "[gradient] layers = 'nothing' matches nothing that was trained" in done.stderr
    assert "Traceback" not in done.stderr


class SlowRows:
    """Rows whose every chunk takes a while: the node that is killed is in the middle of some."""

    def __init__(self, kind):
        self._kind = kind
        self.layout, self.scored = kind.layout, kind.scored

    def products(self, directions, device, count):
        products = self._kind.products(directions, device, count)

        def slowly(stored, weights):
            time.sleep(0.2)
            return products(stored, weights)

        return slowly


@pytest.fixture(scope="module")
def driver(cluster):
    """This process as the one that asks the cluster."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", cluster.address)
        patch.setattr("rapidin_cli.work.caching.chunk_rows", lambda _: 8)
        yield cluster
        ray.shutdown()


def cached(folder, count):
    """The rows of a new project, with some directions and what is asked of them."""
    tiny.project(folder, count)
    Project.open(folder).cache()
    snapshot = Project.open(folder).opened().cache.snapshot()
    layout = RowLayout.from_json(GradientSpec(), snapshot.attributes["rin"]["layout"])
    draw = torch.Generator().manual_seed(0)
    directions = [torch.randn(n, layout.dimensions, generator=draw) for n in (4, 1)]
    wanted = np.ones(snapshot.commit.slots, dtype=bool)
    wanted[5::7] = False
    return snapshot, row_kind(layout), (directions, SCORES["dot"], wanted, 10, 5)


@pytest.mark.parametrize("killed", [False, True], ids=["calm", "one node killed"])
def test_a_scan_on_a_cluster_finds_what_one_here_finds(driver, tmp_path, killed):
    node = driver.add_node(num_cpus=1) if killed else None
    snapshot, kind, asked = cached(tmp_path / "project", 300)
    expected = scan(CachedRows(snapshot, kind, "disk", CPU), *asked)
    rows = CachedRows(snapshot, SlowRows(kind), "disk", CPU)
    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(ray_scan.scan, rows, *asked)
        while killed and not all_work():
            time.sleep(0.05)
        if killed:
            driver.remove_node(node, allow_graceful=False)
        found = result.result(timeout=240)
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(mine.slots, theirs.slots)
        np.testing.assert_array_equal(mine.scores, theirs.scores)
        np.testing.assert_array_equal(mine.totals, theirs.totals)
        np.testing.assert_array_equal(mine.sizes, theirs.sizes)


def all_work():
    """Whether tasks run on every node."""
    if not ray.is_initialized() or ray.cluster_resources().get("CPU") != 3:
        return False
    return not ray.available_resources().get("CPU")


@pytest.mark.usefixtures("driver")
def test_rows_that_a_node_cannot_read_are_named(tmp_path):
    snapshot, kind, asked = cached(tmp_path / "project", 40)
    root = snapshot.objects.root.folder
    (root / object_path(snapshot.manifest.chunk(2)["sketch"].digest)).unlink()
    with pytest.raises(StorageError, match="sketch/c/2"):
        ray_scan.scan(CachedRows(snapshot, kind, "disk", CPU), *asked)


def test_retrieve_on_a_cluster_gives_the_same_report(cluster, tmp_path):
    folder = tiny.project(tmp_path / "project", 40)
    Project.open(folder).cache()
    question = ["--prompt", "the sky", "--response", "is blue", "--exact", "0", "--json"]
    there = start(folder, cluster.address, *question, command="retrieve").ended(240)
    assert there.returncode == 0, there.stderr
    here = rin(folder, "retrieve", *question)
    assert here.returncode == 0, here.stderr
    assert scores_of(json.loads(there.stdout)) == scores_of(json.loads(here.stdout))


def scores_of(report):
    return [(e["digest"], e["score"]) for q in report["queries"] for e in q["examples"]]


@pytest.mark.parametrize(
    "options", [["--hold", "cpu"], ["--checkpoints", "all"]], ids=["hold", "several checkpoints"]
)
def test_what_a_cluster_does_not_do_is_refused(tmp_path, options):
    folder = tiny.project(tmp_path / "project", 5)
    with (folder / "rin.toml").open("a") as file:
        file.write('\n[[checkpoints]]\nname = "other"\npath = "adapter"\n')
    asked = ["--prompt", "a", "--response", "b", "--executor", "ray", *options]
    done = rin(folder, "retrieve", *asked)
    assert done.returncode == 2, done.stderr
    assert "scans the rows of one checkpoint" in done.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--executor", "nowhere"], "there is no executor 'nowhere'"),
        (["--executor", "ray", "--devices", "cpu"], "uses those of a cluster"),
    ],
)
def test_an_executor_that_cannot_be_had_is_refused_at_once(tmp_path, options, said):
    done = rin(tiny.project(tmp_path / "project", 5), "cache", *options)
    assert done.returncode == 2
    assert said in done.stderr


def test_a_forecast_says_that_it_is_of_this_machine(tmp_path):
    done = rin(tiny.project(tmp_path / "project", 5), "cache", "--executor", "ray", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "for one process on this machine" in done.stderr
    assert "5 rows to compute" in done.stderr


def test_a_cluster_that_does_not_answer_is_one_sentence(tmp_path):
    done = start(tiny.project(tmp_path / "project", 5), "127.0.0.1:1").ended()
    assert done.returncode == 1, done.stderr
    assert "there is no Ray cluster at 127.0.0.1:1: Connection refused" in done.stderr
    assert "Traceback" not in done.stderr
