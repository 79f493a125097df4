"""The way out of damage on the command line."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from rapidin_storage import CacheWriter, open_root
from tests.support.damage import CHUNK, damage, files
from tests.support.forked import rin
from tests.support.sandbox import serve


@pytest.fixture
def project(cached_project, tmp_path):
    """A tiny project whose 40 rows lie in 5 chunks."""
    from rapidin_cli import Project

    folder = Path(shutil.copytree(cached_project, tmp_path / "project"))
    cache = Project.open(folder).opened().cache
    snapshot = cache.snapshot()
    specs = {name: spec for name, spec in snapshot.commit.specs.items() if name != "digest"}
    values = snapshot.read(0, 40, [*specs, "digest"])
    attributes = snapshot.attributes
    shutil.rmtree(folder / ".rin/caches")
    shutil.rmtree(folder / ".rin/objects")
    smaller = CacheWriter(cache, specs, attributes, CHUNK)
    smaller.add(values)
    smaller.commit()
    Project.open(folder).cache()  # computes nothing, but rin.lock names the snapshot
    return folder


# Imported late: the sandbox, which imports this file, is to start without torch.
def stored_rows(folder):
    from tests.support import projects

    return projects.stored_rows(folder)


def newest_of(folder):
    from rapidin_cli import Project

    return Project.open(folder).opened().cache.snapshot()


@pytest.mark.parametrize("how", ["middle bit", "truncated", "deleted"])
def test_the_way_out_of_damage_on_the_command_line(project, how):
    before = stored_rows(project)
    snapshot = newest_of(project)
    ref = snapshot.manifest.chunk(2)["sketch"]
    damage(open_root(project / ".rin"), ref, how)

    asked = rin(project, "retrieve", "--row", "data.jsonl:7")
    assert asked.returncode == 5, asked.stderr
    assert ref.digest in asked.stderr
    assert "sketch/c/2" in asked.stderr
    assert "\nnext:  rin verify --repair" in asked.stderr
    checked = rin(project, "verify")
    assert checked.returncode == 5, checked.stderr
    assert f"sketch of rows 16 to 23 of snapshot {snapshot.commit.number}" in checked.stdout
    assert ref.digest in checked.stdout
    assert "next: rin verify --repair" in checked.stderr

    repaired = rin(project, "verify", "--repair")
    assert repaired.returncode == 0, repaired.stderr
    assert (
        "8 rows are lost and were removed from the newest snapshot: data.jsonl:" in repaired.stderr
    )
    assert "rin cache" in repaired.stderr
    assert rin(project, "verify").returncode == 0
    again = rin(project, "cache")
    assert again.returncode == 0, again.stderr
    assert "8 rows computed, 40 cached" in again.stderr
    after = stored_rows(project)
    assert after.keys() == before.keys()
    # Other rows are untouched; those that were computed again are so in other batches.
    assert sum(after[digest] != row for digest, row in before.items()) <= 8
    for digest, row in before.items():
        ours, theirs = (np.frombuffer(values[0], np.int8) for values in (row, after[digest]))
        np.testing.assert_allclose(ours, theirs, atol=1)
    assert rin(project, "verify").returncode == 0
    assert rin(project, "retrieve", "--row", "data.jsonl:7").returncode == 0
    for talk in (asked, checked, repaired, again):
        assert "Traceback" not in talk.stderr


def test_a_remote_heals_a_project(project, tmp_path):
    with (project / "rin.toml").open("a") as file:
        file.write(f'\n[remote.origin]\nurl = "{tmp_path / "remote"}"\n')
    assert rin(project, "push").returncode == 0
    before = files(open_root(project / ".rin"))
    ref = newest_of(project).manifest.chunk(2)["sketch"]
    damage(open_root(project / ".rin"), ref, "middle bit")
    repaired = rin(project, "verify", "--repair")
    assert repaired.returncode == 0, repaired.stderr
    assert "1 objects were fetched" in repaired.stderr
    assert files(open_root(project / ".rin")) == before


def test_a_newest_commit_that_is_lost_is_not_passed_over_in_silence(project):
    (path,) = (project / ".rin/caches").glob("*/log/*.json")
    path.write_bytes(path.read_bytes()[:100])
    asked = rin(project, "retrieve", "--row", "data.jsonl:7")
    assert asked.returncode == 5
    assert "commit 1 of cache" in asked.stderr
    repaired = rin(project, "verify", "--repair")
    assert repaired.returncode == 0, repaired.stderr
    assert "next: rin cache" in repaired.stderr
    again = rin(project, "cache")
    assert "40 rows computed, 40 cached" in again.stderr


if __name__ == "__main__":
    serve()
