"""What goes wrong in a team's day: one sentence, the right exit code, and nothing lost."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from rapidin_storage import list_caches, open_root
from rapidin_storage.objects import object_path
from tests.support import tiny
from tests.support.faults import Fault, FaultProxy, always
from tests.support.forked import rin
from tests.support.projects import status, stored_rows

NOBODY = "http://127.0.0.1:9"


@pytest.fixture
def project(cached_project, tmp_path):
    """Everything cached, and a folder as remote that nothing was pushed to yet."""
    folder = Path(shutil.copytree(cached_project, tmp_path / "one"))
    add(folder, origin=tmp_path / "shared")
    return folder


def add(folder, **remotes):
    """Remotes in rin.toml: a URL, or several lines."""
    with (folder / "rin.toml").open("a") as file:
        for name, url in remotes.items():
            lines = url if isinstance(url, str) and "=" in url else f'url = "{url}"'
            file.write(f"\n[remote.{name}]\n{lines}\n")


def ok(folder, *arguments, **environment):
    done = rin(folder, *arguments, **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def refused(code, said, folder, *arguments, **environment):
    done = rin(folder, *arguments, **environment)
    talk = done.stdout + done.stderr
    assert done.returncode == code, talk
    assert said in done.stderr
    assert done.stderr.count("error:") == 1, talk
    assert "next:" in done.stderr
    assert "Traceback" not in talk
    return done


def clone(folder, *left_out):
    two = folder.parent / f"clone-{uuid.uuid4().hex[:6]}"
    return Path(shutil.copytree(folder, two, ignore=shutil.ignore_patterns(".rin", *left_out)))


# --- gc --local ----------------------------------------------------------------------------


def test_a_store_that_is_the_remote_is_not_relieved_by_itself(project, tmp_path):
    ok(project, "push")
    add(project, alias=tmp_path / "alias")
    (tmp_path / "alias").symlink_to(tmp_path / "shared")
    toml = project / "rin.toml"
    toml.write_text(toml.read_text() + '\n[storage]\nroot = "alias"\n')
    refused(1, "are the same: nothing", project, "gc", "--local", "--remote", "origin", "--yes")
    ok(project, "verify")
    toml.write_text(toml.read_text().replace('root = "alias"', 'root = "memory://store"'))
    refused(2, "itself, not a copy", project, "gc", "--local", "--remote", "origin", "--yes")


def test_status_says_what_is_on_a_remote_only(project):
    ok(project, "push")
    ok(project, "gc", "--local", "--yes")
    assert "5 objects only on a remote" in ok(project, "status").stdout


# --- Places that cannot be asked -----------------------------------------------------------


def test_a_remote_that_cannot_be_asked_does_not_hide_another(project):
    ok(project, "push")
    two = clone(project)
    toml = two / "rin.toml"
    broken = f'\n[remote.broken]\nurl = "s3://b/p"\nendpoint_url = "{NOBODY}"\n'
    unknown = '\n[remote.unknown]\nurl = "nonsense://b"\n'
    first = f"{broken}{unknown}\n[remote.origin]"
    toml.write_text(toml.read_text().replace("\n[remote.origin]", first))
    keys = dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), "key")
    ok(two, "retrieve", "--row", "data.jsonl:7", **keys)
    shown = rin(two, "status", "--exit-code", **keys)
    assert shown.returncode == 1
    assert "broken cannot be reached (cannot reach s3://b/p" in shown.stdout
    assert "unknown cannot be reached" in shown.stdout
    assert "tuned: not here yet, 40 rows cached in origin, not here," in shown.stdout
    assert "  ->  rin pull origin" in shown.stdout
    examined = rin(two, "doctor", **keys)
    assert examined.returncode == 1
    assert "FAIL remote broken" in examined.stdout
    assert "FAIL remote unknown" in examined.stdout
    assert "ok   remote origin: concurrent writers" in examined.stdout


def test_what_is_not_known_is_not_up_to_date(project):
    add(project, far=f'url = "s3://b/p"\nendpoint_url = "{NOBODY}"')
    ok(project, "push", "origin")
    code, found = status(project)
    assert (code, found["next"]) == (1, "rin doctor")
    assert found["remotes"] == {"origin": "equal", "far": "unreachable"}
    assert found["reasons"]["far"]
    assert status(project, "--offline")[0] == 0


def test_rows_that_a_remote_may_have_are_not_computed_in_silence(project):
    add(project, far=f'url = "s3://b/p"\nendpoint_url = "{NOBODY}"')
    tiny.write_jsonl(project / "data.jsonl", tiny.rows(42))
    keys = dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), "key")
    done = refused(1, "cannot fetch rows that remote far may have", project, "cache", **keys)
    assert "--no-pull" in done.stderr
    assert "2 rows computed" in ok(project, "cache", "--no-pull", **keys).stderr


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ('url = "s3://KEY:SECRET@bucket/p"', "contains credentials"),
        ('url = "s3://bucket/p"\nendpoint_url = "127.0.0.1:9"', "must begin with http://"),
        ('url = "s3://"', "has no location"),
    ],
)
def test_a_remote_that_cannot_be_is_refused_where_it_is_used(project, lines, said):
    add(project, bad=lines)
    refused(4, said, project, "push", "bad")
    assert "SECRET" not in rin(project, "doctor").stdout
    ok(project, "push", "origin")


def test_remotes_with_credentials_or_without_a_place_are_not_added(project):
    for url in ("s3://KEY:SECRET@bucket/p", "s3:///p", ""):
        done = rin(project, "remote", "add", "bad", url)
        assert done.returncode == 4, done.stderr
        assert "SECRET" not in done.stderr
    ok(project, "remote", "list")


def test_a_word_that_names_no_place_makes_no_folder(project):
    refused(4, "'orgin' is neither a remote nor a folder", project, "cache", "--root", "orgin")
    assert not (project / "orgin").exists()
    ok(project, "cache", "--root", "./orgin", "--dry-run")


def test_a_single_writer_s_place_is_no_failure_of_doctor(project):
    add(project, nas='url = "memory://nas"\nsingle_writer = true')
    done = ok(project, "doctor")
    assert "remote nas: concurrent writers: only one, as" in done.stdout


def test_a_remote_s_damage_leads_to_the_remote_s_repair(project):
    ok(project, "push")
    for place in (project / ".rin", project.parent / "shared"):
        path = place / object_path(
            newest_commit(project).manifest(store(place)).chunk(0)["loss"].digest
        )
        path.write_bytes(b"x")
    ok(project, "verify", "--repair")
    done = refused(5, "cannot fetch rows that remote origin may have", project, "cache")
    assert "rin verify --repair --remote origin" in done.stderr
    ok(project, "verify", "--repair", "--remote", "origin")
    ok(project, "cache")
    ok(project, "push")
    ok(project, "verify", "--remote", "origin")
    assert status(project)[0] == 0


def store(place):
    from rapidin_storage import ObjectStore

    return ObjectStore(open_root(place))


# --- rin.lock ------------------------------------------------------------------------------


def test_a_conflict_in_the_lock_stops_before_the_work(project):
    tiny.write_jsonl(project / "data.jsonl", tiny.rows(44))
    lock = project / "rin.lock"
    good = lock.read_text()
    lock.write_text(f"<<<<<<< HEAD\n{good}=======\n>>>>>>> theirs\n")
    done = refused(4, "rin.lock has a merge conflict", project, "cache")
    assert "rows to compute" not in done.stderr
    lock.write_text(good)
    assert "4 rows computed" in ok(project, "cache").stderr


def test_a_pull_that_cannot_bring_what_the_lock_names_fails(project):
    ok(project, "push")
    two = clone(project)
    tiny.write_jsonl(project / "data.jsonl", tiny.rows(44))
    ok(project, "cache")  # and its author forgets to push
    shutil.copy(project / "rin.lock", two)
    done = refused(5, "rin.lock names another snapshot of tuned", two, "pull")
    assert "40 rows in snapshot 1" in done.stderr
    assert "rin push where that was cached" in done.stderr
    code, found = status(two)
    assert (code, found["promised"]) == (1, True)
    assert "rin push where it was cached" in found["next"]
    ok(project, "push")
    ok(two, "pull")


def test_a_checkpoint_without_a_line_in_the_lock_does_not_stop_the_others(project):
    ok(project, "push")
    two = clone(project, "base", "adapter", "data.jsonl")
    with (two / "rin.toml").open("a") as file:
        file.write('\n[[checkpoints]]\nname = "new"\npath = "adapter-2"\n')
    done = ok(two, "pull")
    assert "checkpoint new was skipped: it is not in rin.lock" in done.stderr
    assert "tuned: 1 commit, 40 rows" in done.stderr
    refused(4, "adapter-2", two, "pull", "--checkpoint", "new")
    three = clone(two, "rin.lock")
    refused(4, "rin.lock has no cache for it, and", three, "pull")
    assert "40 rows" in ok(three, "pull", "--all").stderr
    shown = ok(two, "status").stdout
    assert "40 rows cached" in next(line for line in shown.splitlines() if "tuned" in line)
    ok(two, "export", "tuned", "--zarr", "rows.zarr")
    assert "0 rows added, 0 removed, 40 in both" in ok(two, "diff", "tuned@1", "tuned").stdout


# --- Repairs -------------------------------------------------------------------------------


def test_a_repair_names_the_rows_to_compute(project):
    cache = project / ".rin/objects"
    chunk = max(cache.rglob("*"), key=lambda path: path.stat().st_size)
    chunk.write_bytes(b"x")
    shutil.rmtree(project.parent / "shared", ignore_errors=True)
    done = refused(5, "does not exist, so the repair", project, "verify", "--repair")
    assert "mount it" in done.stderr
    (project.parent / "shared").mkdir()
    done = rin(project, "verify", "--repair", "--json")
    found = json.loads(done.stdout)
    assert found["clean"]
    assert found["repaired"]["lost_rows"] == len(found["repaired"]["lost"]) == 40
    assert "data.jsonl:7" in found["repaired"]["lost"]
    assert len(found["caches"][0]["problems"]) == 1
    assert "40 rows computed" in ok(project, "cache").stderr


def test_what_cannot_be_read_is_not_given_up(project):
    """Not readable is not damaged."""
    ok(project, "remote", "remove", "origin")
    path = open_root(project / ".rin").folder / object_path(newest_commit(project).pages[0].digest)
    good = path.read_bytes()
    path.unlink()
    path.mkdir()  # tests may run as root, who may read any file
    done = rin(project, "verify", "--repair")
    assert done.returncode == 1
    assert "Is a directory" in done.stderr
    assert path.is_dir()
    path.rmdir()
    path.write_bytes(good)
    ok(project, "verify")


def test_a_lost_group_is_written_again_by_the_next_cache(project):
    before = stored_rows(project)
    ok(project, "remote", "remove", "origin")
    root = open_root(project / ".rin")
    group = newest_commit(project).group
    root.write(object_path(group.digest), b"x" * group.size)
    refused(1, "rin cache writes it again", project, "verify", "--repair")
    ok(project, "cache")
    ok(project, "verify")
    assert stored_rows(project) == before


def newest_commit(project):
    from rapidin_storage import Cache

    root = open_root(project / ".rin")
    return Cache(root, *list_caches(root)).log.latest()


def test_a_mangled_mark_of_the_format_is_mended(project):
    ok(project, "remote", "remove", "origin")
    mark = project / ".rin/format.json"
    good = mark.read_bytes()
    mark.write_bytes(b"\0" * 40)
    code, found = status(project)
    assert (code, found["next"]) == (1, "rin verify --repair")
    assert "format.json is not readable" in found["problem"]
    refused(5, "format.json is not readable", project, "retrieve", "--row", "data.jsonl:7")
    ok(project, "verify", "--repair")
    assert mark.read_bytes() == good
    mark.write_bytes(b'{"format": "theirs", "version": 1}')
    refused(5, "does not describe a rin store", project, "verify", "--repair")


def test_what_a_remote_lacks_is_a_problem_of_the_remote(project):
    ok(project, "push")
    chunk = max((project.parent / "shared/objects").rglob("*"), key=lambda p: p.stat().st_size)
    chunk.unlink()
    done = rin(project, "verify", "--remote", "origin")
    assert done.returncode == 5
    assert chunk.name in done.stdout
    assert (
        "1 objects were fetched" in ok(project, "verify", "--remote", "origin", "--repair").stderr
    )
    ok(project, "verify", "--remote", "origin")


# --- Interruptions -------------------------------------------------------------------------


@pytest.mark.parametrize("again", [False, True])
def test_an_interrupted_push_ends_at_once(project, s3_server, again):
    """Though the service does not answer, and a request would be given up in minutes only."""
    with FaultProxy(
        s3_server.endpoint, always(Fault.TIMEOUT, lambda r: r.method == "PUT")
    ) as proxy:
        url = f"s3://caches/{uuid.uuid4().hex}"
        add(project, far=f'url = "{url}"\nendpoint_url = "{proxy.endpoint}"')
        process = subprocess.Popen(
            [sys.executable, "-m", "rapidin_cli", "push", "far"],
            cwd=project,
            env={**os.environ},
            stderr=subprocess.PIPE,
            text=True,
        )
        deadline = time.monotonic() + 60
        while not any(method == "PUT" for method, _ in proxy.requests):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        begin = time.monotonic()
        process.send_signal(signal.SIGINT)
        if again:
            process.send_signal(signal.SIGINT)
        _, talk = process.communicate(timeout=30)
        assert process.returncode == 130, talk
        assert "Traceback" not in talk
        assert time.monotonic() - begin < 20
    ok(project, "verify")
