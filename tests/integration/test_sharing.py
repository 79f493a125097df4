"""A team shares a cache over S3: the commands as they are typed."""

import json
import os
import re
import shutil
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from rapidin_cli import Project
from tests.support import forked, tiny
from tests.support.forked import rin
from tests.support.projects import status, stored_rows

TREE = re.compile(r'"snapshot": "([0-9a-f]{64})"')


@pytest.fixture
def team(cached_project, tmp_path, s3_server):
    """One who cached, and one who cloned: git carries rin.toml, rin.lock, data and model."""
    url = f"s3://caches/{uuid.uuid4().hex}"
    one = Path(shutil.copytree(cached_project, tmp_path / "one"))
    added = rin(one, "remote", "add", "origin", url, "--endpoint-url", s3_server.endpoint)
    assert added.returncode == 0, added.stderr
    two = Path(shutil.copytree(one, tmp_path / "two", ignore=shutil.ignore_patterns(".rin")))
    return one, two


def answer(folder, *options):
    done = rin(
        folder, "retrieve", "--row", "data.jsonl:7", "--score", "rapidin", "--json", *options
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_clone_pull_and_retrieve_give_the_same_scores(team):
    one, two = team
    code, found = status(one)
    assert (code, found["next"], found["remotes"]) == (1, "rin push origin", {"origin": "empty"})
    nothing = rin(two, "pull")
    assert nothing.returncode == 5
    assert "no store at s3://caches" in nothing.stderr

    pushed = rin(one, "push")
    assert pushed.returncode == 0, pushed.stderr
    assert "1 commit, 40 rows in snapshot 1" in pushed.stderr
    assert re.search(r"8 objects copied, [\d.]+ kB at [\d.]+ [kMG]B/s", pushed.stderr)
    again = rin(one, "push")
    assert "up to date" in again.stderr
    assert "no objects to copy" in again.stderr
    code, found = status(one)
    assert (code, found["next"], found["remotes"]) == (0, "", {"origin": "equal"})

    # Without pulling: read through, verified, kept.
    code, found = status(two)
    assert (code, found["place"], found["cached"]) == (1, "origin", 40)
    assert found["next"] == "rin pull origin"
    theirs = answer(one)
    assert answer(two)["queries"] == theirs["queries"]
    kept = [p for p in (two / ".rin/objects").rglob("*") if p.is_file()]
    assert len(kept) == 6

    shutil.rmtree(two / ".rin")
    pulled = rin(two, "pull", "origin")
    assert pulled.returncode == 0, pulled.stderr
    assert "40 rows in snapshot 1" in pulled.stderr
    assert status(two)[0] == 0
    assert answer(two)["queries"] == theirs["queries"]
    assert stored_rows(two) == stored_rows(one)
    assert rin(two, "verify").returncode == 0


def test_pull_needs_neither_model_nor_data(team, tmp_path):
    one, _ = team
    assert rin(one, "push").returncode == 0
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("rin.toml", "rin.lock"):
        shutil.copy(one / name, bare)
    pulled = rin(bare, "pull")
    assert pulled.returncode == 0, pulled.stderr
    assert rin(bare, "verify").returncode == 0
    shown = rin(bare, "log")
    assert "40 rows (+40)" in shown.stdout
    listed = rin(bare, "log", "--json", "--remote", "origin")
    snapshot = json.loads(listed.stdout)["snapshots"][0]
    assert [snapshot["tree"]] == TREE.findall((bare / "rin.lock").read_text())


def test_two_who_cached_apart_come_together(team):
    """Neither computes what the other has; both logs end with the same tree."""
    one, two = team
    tiny.write_jsonl(one / "data.jsonl", tiny.rows(46))
    tiny.write_jsonl(two / "data.jsonl", tiny.rows(48)[8:])
    assert rin(one, "cache", "--no-pull").returncode == 0
    assert rin(two, "cache", "--no-pull").returncode == 0
    assert rin(one, "push").returncode == 0
    merged = rin(two, "push")
    assert merged.returncode == 0, merged.stderr
    assert "merged with what others had added" in merged.stderr
    for folder in (one, two):
        assert rin(folder, "pull").returncode == 0
    assert stored_rows(one).keys() == stored_rows(two).keys()
    assert len(stored_rows(one)) == 48
    trees = {Project.open(f).opened().cache.snapshot().commit.tree for f in (one, two)}
    assert len(trees) == 1
    for place in ([], ["--remote", "origin"]):
        assert rin(one, "verify", *place).returncode == 0
    moved = rin(one, "diff", "@1", "--exit-code")
    assert moved.returncode == 1
    assert "8 rows added, 0 removed, 40 in both" in moved.stdout
    assert "+ data.jsonl:46" in moved.stdout
    # The data's owner: what is cached for others is no drift of the data, only of the lock.
    code, found = status(one)
    assert (code, found["gone"], found["missing"]) == (1, 2, 0)
    assert found["next"] == "rin cache tuned"
    assert rin(one, "cache").returncode == 0
    assert status(one)[0] == 0


def test_cache_takes_from_a_remote_what_it_has(team):
    one, two = team
    assert rin(one, "push").returncode == 0
    tiny.write_jsonl(two / "data.jsonl", tiny.rows(44))
    cached = rin(two, "cache")
    assert cached.returncode == 0, cached.stderr
    assert "fetched from origin; 40 rows are here now" in cached.stderr
    assert "4 rows to compute" in cached.stderr
    assert stored_rows(one).items() <= stored_rows(two).items()


def test_job_arrays_write_their_parts_straight_to_the_bucket(team, cached_project):
    _, two = team
    runs = [
        forked.start(two, "cache", "--root", "origin", "--part", part)
        for part in ("1/3", "2/3", "3/3")
    ]
    for done in [run.ended() for run in runs]:
        assert done.returncode == 0, done.stderr
    toml = two / "rin.toml"
    toml.write_text(toml.read_text() + '\n[storage]\nroot = "origin"\n')
    stored, wanted = stored_rows(two), stored_rows(cached_project)
    assert stored.keys() == wanted.keys()
    assert "\ntuned: 0 rows to compute (40 cached)" in rin(two, "cache", "--dry-run").stderr
    assert rin(two, "cache").returncode == 0  # writes the lock of what all parts made
    assert status(two)[0] == 0
    assert answer(two)["queries"][0]["examples"][0]["id"] == "data.jsonl:7"
    refused = rin(two, "push")
    assert refused.returncode == 2
    assert "origin itself" in refused.stderr
    for part in ("0/3", "4/3", "x", "1"):
        assert rin(two, "cache", "--part", part).returncode == 2


def test_local_bulk_can_be_dropped_and_comes_back(team):
    one, _ = team
    before = stored_rows(one)
    refused = rin(one, "gc", "--local", "--yes")
    assert refused.returncode == 5
    assert rin(one, "push").returncode == 0
    planned = rin(one, "gc", "--local")
    assert "would remove 5 objects that the remote holds" in planned.stderr
    assert rin(one, "gc", "--local", "--yes").returncode == 0
    checked = rin(one, "verify", "--json")
    assert checked.returncode == 0
    assert json.loads(checked.stdout)["caches"][0]["elsewhere"] == 5
    assert status(one, "--offline")[0] == 0
    assert rin(one, "pull").returncode == 0
    assert json.loads(rin(one, "verify", "--json").stdout)["caches"][0]["elsewhere"] == 0
    assert stored_rows(one) == before


def test_gc_keeps_what_is_needed_and_asks_for_yes(team):
    one, _ = team
    stray = one / ".rin/objects/sha256/00" / ("0" * 64)
    stray.parent.mkdir(parents=True, exist_ok=True)
    stray.write_bytes(b"left by a writer that died")
    assert rin(one, "gc", "--grace", "0s").returncode == 2
    assert rin(one, "gc", "--grace", "soon").returncode == 2
    young = rin(one, "gc", "--yes")
    assert "removed 0 objects" in young.stderr
    assert "1 are younger than 24h" in young.stderr
    os.utime(stray, (0, 0))
    assert "would remove 1 objects that nothing needs" in rin(one, "gc").stderr
    assert stray.exists()
    assert rin(one, "gc", "--yes").returncode == 0
    assert not stray.exists()
    assert rin(one, "verify").returncode == 0
    assert "no holes" in rin(one, "gc", "--compact").stderr


def test_an_export_is_plain_zarr(team, tmp_path):
    one, _ = team
    made = rin(one, "export", "tuned@1", "--zarr", "rows.zarr")
    assert made.returncode == 0, made.stderr
    code = (
        "import sys, zarr; group = zarr.open_group(sys.argv[1], mode='r');"
        "print(group['sketch'].shape, group.attrs['rin']['layout']['layers'][0]);"
        "assert not [m for m in sys.modules if m.startswith('rapidin')]"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code, str(one / "rows.zarr")],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert shown.stdout.startswith("(40, ")
    assert rin(one, "export", "--zarr", "rows.zarr").returncode == 2
    assert rin(one, "export").returncode == 2
    assert rin(one, "export", "tuned@9", "--zarr", "x").returncode == 4


def test_diff_shows_how_the_influences_of_a_saved_query_moved(team):
    one, _ = team
    answer(one)
    tiny.write_jsonl(one / "data.jsonl", tiny.rows(44))
    assert rin(one, "cache").returncode == 0
    done = rin(one, "diff", "tuned@1", "tuned", "--result", "", "--top", "3", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found["added"]) == 4
    moved = {row["id"]: row for row in found["queries"][0]["moved"]}
    assert moved["data.jsonl:7"]["before"] == moved["data.jsonl:7"]["after"]
    new = [row for row in moved.values() if row["before"] is None]
    assert {row["digest"] for row in new} <= {row["digest"] for row in found["added"]}
    assert rin(one, "diff", "tuned@7").returncode == 4


def test_doctor_probes_every_place(team, s3_server):
    one, _ = team
    done = rin(one, "doctor")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "remote origin: concurrent writers: exactly one of several racing" in done.stdout
    assert "credentials from the environment (AWS_ACCESS_KEY_ID)" in done.stdout
    assert s3_server.secret not in done.stdout
    assert re.search(r"remote origin: speed: one 8 MB object: \d", done.stdout)
    refused = rin(one, "doctor", AWS_SECRET_ACCESS_KEY="wrong")
    assert refused.returncode == 1
    assert "FAIL remote origin" in refused.stdout
    assert "the environment" in refused.stdout
    assert "wrong" not in refused.stdout.replace("went wrong", "")
