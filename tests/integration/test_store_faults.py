"""What goes wrong between us and a store: on the network, at its door, on the disk.

Whatever happens: a fault that passes ends in success, one that stays in one sentence, and
nothing half-written is visible. Most of the time here is spent waiting for the next attempt,
so what needs the network runs side by side: `ended` starts all of it at once.
"""

import hashlib
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from rapidin_storage import (
    AccessError,
    ArraySpec,
    Cache,
    CacheWriter,
    CorruptError,
    NoBucketError,
    NotFoundError,
    ObjectStore,
    Root,
    Snapshot,
    StorageError,
    open_root,
)
from rapidin_storage.objects import OBJECTS, object_path
from rapidin_storage.repair import repair
from rapidin_storage.sync import synchronise
from rapidin_storage.verify import verify
from tests import forked, s3
from tests.faults import Fault, FaultProxy, always, first
from tests.unit.test_storage import ID, contents, expected, rows, writer

BEFORE, AFTER = 10, 16  # rows of the first commit, and with the second
ATTEMPTS = 16  # for one request: at 60 s without an answer each, a quarter of an hour
PATIENCE = 60  # seconds until a refusal
SECRET = "wrong-secret-0451"
REPOSITORY = Path(__file__).parents[2]

# --- Places ------------------------------------------------------------------------------


@dataclass
class Bench:
    """What the cases share: a server, and folders with the store as it was and as it shall be."""

    server: s3.Server
    folder: Path
    project: Path
    begun: Path = field(init=False)
    full: Path = field(init=False)
    uploaded: Root = field(init=False)

    def __post_init__(self):
        self.begun, self.full = self.folder / "begun", self.folder / "full"
        fill(open_root(self.begun), 0, BEFORE)
        shutil.copytree(self.begun, self.full)
        fill(open_root(self.full), BEFORE, AFTER)
        self.uploaded = self.place()
        upload(self.full, self.uploaded)

    def new_folder(self):
        return Path(tempfile.mkdtemp(dir=self.folder))

    def place(self, url=""):
        """A root without faults, at a new URL by default. Call it in the main thread:
        another would have to make a connection of its own.
        """
        url = url or f"s3://caches/{uuid.uuid4().hex}"
        return open_root(url, endpoint_url=self.server.endpoint)


def upload(folder, there):
    """Put a store's files where they are, with no question asked."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            there.write(str(path.relative_to(folder)), path.read_bytes())


@pytest.fixture(scope="module")
def bench(s3_server, tmp_path_factory, cached_project):
    return Bench(s3_server, tmp_path_factory.mktemp("faults"), cached_project)


@pytest.fixture(scope="module")
def ended(bench, request):
    """Start all cases that were selected; the result waits for one, and raises its failure."""
    cases = {
        item.callspec.params["case"]
        for item in request.session.items
        if item.path == request.path and "case" in getattr(item, "callspec", _Nothing).params
    }
    with ThreadPoolExecutor(40) as pool:
        futures = {
            case: pool.submit(case.run, bench, bench.place()) for case in sorted(cases, key=str)
        }
        yield lambda case: futures[case].result()


class _Nothing:
    params = ()


def attempt(operation):
    """Return the error of an operation, or None."""
    try:
        operation()
    except StorageError as error:
        return error
    return None


def fill(root, start, stop):
    one = writer(root)
    one.add(rows(start, stop))
    one.commit()


def whole(root):
    """Digest -> loss of all rows, read anew; the store must have nothing wrong with it."""
    cache = Cache(root, ID)
    assert verify(cache).problems == []
    return contents(cache.snapshot())


def intact(folder):
    """Every object is what its name says."""
    objects = [path for path in (folder / OBJECTS).rglob("*") if path.is_file()]
    return all(hashlib.sha256(path.read_bytes()).hexdigest() == path.name for path in objects)


def files(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# --- Operations --------------------------------------------------------------------------


def write(here, remote):
    del here
    fill(remote, 0, AFTER)


def push(here, remote):
    synchronise(Cache(open_root(here), ID), Cache(remote, ID))


def pull(here, remote):
    synchronise(Cache(remote, ID), Cache(open_root(here), ID))


def read(here, remote):
    """Read through: what is not here is streamed from the remote and kept."""
    newest = Cache(remote, ID).log.latest()
    snapshot = Snapshot(ObjectStore(open_root(here), [remote]), newest)
    assert contents(snapshot) == expected(range(AFTER))


def look(here, remote):
    """Whether everything is there, in full size."""
    del here
    assert verify(Cache(remote, ID), quick=True).problems == []


OPERATIONS = {operation.__name__: operation for operation in (write, push, pull, read, look)}

REQUESTS = {
    "PUT object": lambda r: r.method == "PUT" and "/objects/" in r.path,
    "GET object": lambda r: r.method == "GET" and "/objects/" in r.path,
    "HEAD object": lambda r: r.method == "HEAD" and "/objects/" in r.path,
    "PUT commit": lambda r: r.method == "PUT" and "/log/0" in r.path,
    "GET commit": lambda r: r.method == "GET" and "/log/0" in r.path,
    "PUT probe": lambda r: r.method == "PUT" and "/probes/" in r.path,
    "DELETE probe": lambda r: r.method == "DELETE" and "/probes/" in r.path,
    "GET format": lambda r: r.method == "GET" and "/format.json" in r.path,
    "GET list": lambda r: r.method == "GET" and "list-type=2" in r.path,
    "any": lambda _: True,
}
LASTING = 0


@dataclass(frozen=True)
class Case:
    """An operation in which some requests, the first `count` or all, meet a fault."""

    operation: str
    fault: Fault
    requests: str
    count: int = LASTING

    def __str__(self):
        often = f"{self.count} times " if self.count else ""
        return f"{self.operation}, {often}{self.fault.name} of {self.requests}"

    def run(self, bench, place):
        """Break it, mend it, look at what is left, and do it again."""
        reading = self.operation in ("pull", "read", "look")
        direct = bench.uploaded if reading else place
        if not reading:
            upload(bench.begun, direct)
        here = bench.new_folder()
        if self.operation in ("push", "pull"):
            source = bench.full if self.operation == "push" else bench.begun
            shutil.copytree(source, here, dirs_exist_ok=True)
        target = open_root(here) if self.operation == "pull" else direct
        operate = OPERATIONS[self.operation]
        struck = Counter()
        with FaultProxy(bench.server.endpoint, self.plan(struck)) as proxy:
            timeout = 1 if self.fault is Fault.TIMEOUT else 60
            remote = open_root(direct.url, endpoint_url=proxy.endpoint, timeout=timeout)
            error = attempt(lambda: operate(here, remote))
            proxy.fault = lambda _: None
            assert intact(here)
            if error is not None:
                left = BEFORE if target is not bench.uploaded else AFTER
                left = AFTER if self.committed(target) else left
                assert whole(target) == expected(range(left))
                operate(here, remote)
        self.check(error, struck, direct.url)
        assert whole(target) == expected(range(AFTER))
        assert intact(here)
        if reading:
            assert log_files(target) == log_files(direct)

    def plan(self, struck):
        """The fault; one that stays ends when a client has tried too often, and so fails it."""
        match = REQUESTS[self.requests]
        plan = first(self.count, self.fault, match) if self.count else always(self.fault, match)
        enough = threading.Event()

        def fault(request):
            what = request.method, request.path
            found = None if enough.is_set() else plan(request)
            struck[what] += found is not None
            if struck[what] == ATTEMPTS:
                enough.set()
            return found

        return fault

    def committed(self, target):
        """Whether the commit was written although the writer got an error."""
        lost = self.fault is Fault.LOST_REPLY and self.operation in ("write", "push")
        return lost and Cache(target, ID).log.numbers() == [1, 2]

    def check(self, error, struck, url):
        if self.count:
            assert error is None, f"a fault that passed became {type(error).__name__}: {error}"
        assert struck.total() >= max(1, self.count), "the fault never happened"
        if self.count:
            return
        if self.fault is Fault.LOST_REPLY and error is None:
            return  # reading it back has shown that it was written
        # Bytes that are wrong again and again are corrupt; of all else nobody is to blame.
        kind = CorruptError if self.fault is Fault.FLIP else StorageError
        assert error is not None, f"one request was tried {max(struck.values())} times"
        assert type(error) is kind, f"{type(error).__name__}: {error}"
        assert url in str(error)
        assert len(str(error)) < 600
        assert "\n" not in str(error)


def log_files(root):
    log = Cache(root, ID).log
    return [root.read(log.path(number)) for number in log.numbers()]


NETWORK = [Fault.RESET, Fault.TIMEOUT, Fault.ERROR_500, Fault.SLOW_DOWN]
WRITING = [*NETWORK, Fault.LOST_REPLY]
READING = [*NETWORK, Fault.TRUNCATE, Fault.FLIP]

PASSING = [
    *(Case("write", fault, "PUT object", 2) for fault in WRITING),
    *(Case("write", fault, "PUT commit", 2) for fault in WRITING),
    *(Case("push", fault, "PUT object", 2) for fault in (Fault.RESET, Fault.LOST_REPLY)),
    *(Case("push", fault, "PUT commit", 2) for fault in (Fault.ERROR_500, Fault.LOST_REPLY)),
    *(Case("pull", fault, "GET object", 2) for fault in READING),
    *(Case("pull", fault, "GET commit", 2) for fault in READING),
    *(Case("read", fault, "GET object", 2) for fault in READING),
    # What happens on the way there.
    Case("write", Fault.LOST_REPLY, "PUT commit", 1),
    Case("write", Fault.ERROR_500, "GET list", 2),
    Case("write", Fault.TRUNCATE, "GET list", 2),
    Case("write", Fault.TRUNCATE, "GET format", 2),
    Case("write", Fault.RESET, "PUT probe", 2),
    Case("write", Fault.LOST_REPLY, "PUT probe", 1),
    Case("write", Fault.LOST_REPLY, "DELETE probe", 1),
    Case("look", Fault.SLOW_DOWN, "HEAD object", 2),
    Case("push", Fault.SLOW_DOWN, "any", 2),
]
STAYING = [
    *(Case("write", fault, "PUT object") for fault in WRITING),
    *(Case("write", fault, "PUT commit") for fault in (Fault.ERROR_500, Fault.LOST_REPLY)),
    *(Case("write", fault, "GET list") for fault in (Fault.ERROR_500, Fault.TRUNCATE)),
    *(Case("push", fault, "PUT object") for fault in (Fault.RESET, Fault.ERROR_500)),
    Case("push", Fault.LOST_REPLY, "PUT commit"),
    Case("look", Fault.ERROR_500, "HEAD object"),
    Case("push", Fault.RESET, "any"),
    *(Case("pull", fault, "GET object") for fault in (Fault.RESET, Fault.TRUNCATE, Fault.FLIP)),
    *(Case("pull", fault, "GET commit") for fault in (Fault.TRUNCATE, Fault.FLIP)),
    *(Case("read", fault, "GET object") for fault in READING),
]


@pytest.mark.parametrize("case", PASSING, ids=str)
def test_a_fault_that_passes_ends_in_success(case, ended):
    ended(case)


@pytest.mark.parametrize("case", STAYING, ids=str)
def test_a_fault_that_stays_ends_in_one_sentence(case, ended):
    ended(case)


@pytest.mark.parametrize("count", [1, 4, 100])
def test_what_flips_on_the_wire_is_not_lost_on_the_remote(bench, count):
    """A repair must not remove there what only arrived here damaged."""
    place = bench.place()
    upload(bench.full, place)
    match = REQUESTS["GET object"]
    with FaultProxy(bench.server.endpoint, first(count, Fault.FLIP, match)) as proxy:
        cache = Cache(open_root(place.url, endpoint_url=proxy.endpoint), ID)
        found = verify(cache).problems
        proxy.fault = lambda _: None
        if found:
            repair(cache, found, [])
    assert whole(place) == expected(range(AFTER))
    assert Cache(place, ID).log.numbers() == [1, 2]


def test_a_service_that_fails_during_a_repair_costs_nothing(bench):
    place = bench.place()
    upload(bench.full, place)
    before = {entry.path for entry in place.entries("objects")}
    match = REQUESTS["GET object"]
    with FaultProxy(bench.server.endpoint, always(Fault.FLIP, match)) as proxy:
        cache = Cache(open_root(place.url, endpoint_url=proxy.endpoint), ID)
        found = verify(cache).problems
        assert found
        proxy.fault = always(Fault.ERROR_500, match)
        with pytest.raises(StorageError, match="InternalError"):
            repair(cache, found, [])
    assert {entry.path for entry in place.entries("objects")} == before
    assert whole(place) == expected(range(AFTER))


# --- At the door -------------------------------------------------------------------------

AWS = {
    "AWS_CONFIG_FILE": "/dev/null",
    "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_DEFAULT_REGION": s3.REGION,
}
ONE_BY_ONE = threading.Lock()  # processes of multiprocessing are not made for many threads
NO_BUCKET = "s3://no-such-bucket/team"


def environment(**credentials):
    """This process's, with no credentials but those."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    return {**own, **AWS, **credentials}


@dataclass(frozen=True)
class Door:
    """A store that does not let us in, or is not there at all."""

    name: str
    error: type
    said: str
    credentials: tuple = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    url: str = ""
    profile: str = ""
    listens: bool = True

    def __str__(self):
        return self.name

    def environment(self, server):
        known = dict.fromkeys(self.credentials, SECRET)
        return environment(
            **{n: server.environment()[n] if self.right else known[n] for n in known}
        )

    @property
    def right(self):
        """Whether the credentials are those of the server."""
        return "refused" not in self.said

    def endpoint(self, server):
        return server.endpoint if self.listens else f"http://127.0.0.1:{s3.free_ports(1)[0]}"

    def run(self, bench, place):
        del place
        here = bench.new_folder()
        shutil.copytree(bench.full, here, dirs_exist_ok=True)
        before = files(here)
        url = self.url or bench.uploaded.url
        done = subprocess.run(
            [
                *(sys.executable, "-m", "tests.integration.test_store_faults"),
                *(here, url, self.endpoint(bench.server), self.profile),
            ],
            cwd=REPOSITORY,
            env=self.environment(bench.server),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        assert SECRET not in done.stdout
        assert bench.server.secret not in done.stdout
        found = json.loads(done.stdout)
        assert set(found) == {*OPERATIONS, "prepare", "verify"}
        for operation, (kind, text, seconds) in found.items():
            assert kind == self.error.__name__, f"{operation}: {kind}: {text}"
            assert url in text
            assert re.search(self.said, text), text
            assert seconds < PATIENCE
            assert len(text) < 600
        assert files(here) == before


def try_the_door(here, url, endpoint, profile):
    """Say what every operation ends in: [type, message, seconds]."""
    remote = open_root(url, endpoint_url=endpoint, profile=profile, name="origin")
    operations = {
        **{name: partial(operate, Path(here), remote) for name, operate in OPERATIONS.items()},
        "prepare": remote.prepare,
        "verify": lambda: verify(Cache(remote, ID)),
    }

    def timed(operation):
        start = time.monotonic()
        try:
            operation()
            found = ["nothing", ""]
        except Exception as error:
            found = [type(error).__name__, str(error)]
        return [*found, time.monotonic() - start]

    with ThreadPoolExecutor(len(operations)) as pool:
        return dict(zip(operations, pool.map(timed, operations.values()), strict=True))


DOORS = [
    Door("a wrong secret", AccessError, "refused the credentials from the environment"),
    Door("no credentials", AccessError, "no credentials for .*origin", credentials=()),
    Door("an unknown profile", AccessError, "nobody", profile="nobody"),
    Door("no such bucket", NoBucketError, "cannot find the bucket", url=NO_BUCKET),
    Door("nobody listens", StorageError, "(?i)connect", listens=False),
]


@pytest.mark.parametrize("case", DOORS, ids=str)
def test_who_is_not_let_in_is_told_why(case, ended):
    ended(case)


# --- The command line --------------------------------------------------------------------


def rin(folder, *arguments, **variables):
    credentials = dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), "")
    with ONE_BY_ONE:
        return forked.rin(folder, *arguments, **{**AWS, **credentials, **variables})


def with_remote(bench, url, **settings):
    """A copy of the tiny project with a remote."""
    folder = bench.new_folder() / "project"
    shutil.copytree(bench.project, folder)
    lines = "".join(f'{name} = "{value}"\n' for name, value in settings.items() if value)
    with (folder / "rin.toml").open("a") as file:
        file.write(f'\n[remote.origin]\nurl = "{url}"\n{lines}')
    return folder


def without_cache(folder):
    """A colleague's clone."""
    clone = folder.parent / "clone"
    shutil.copytree(folder, clone, ignore=shutil.ignore_patterns(".rin"))
    return clone


def refused(done, code, *said):
    """Assert that a command ended with one sentence, which says all that."""
    talk = done.stdout + done.stderr
    assert done.returncode == code, talk
    assert len(re.findall("^error:", done.stderr, re.MULTILINE)) == 1, talk
    assert "\nnext: " in done.stderr
    for text in said:
        assert text in done.stderr, talk
    for text in ("Traceback", "test-secret", SECRET):
        assert text not in talk


@dataclass(frozen=True)
class AtTheDoor:
    """`rin push` and `rin pull` where the remote does not let us in."""

    door: Door
    code: int

    def __str__(self):
        return str(self.door)

    def run(self, bench, place):
        url = self.door.url or place.url
        endpoint = self.door.endpoint(bench.server)
        folder = with_remote(bench, url, endpoint_url=endpoint, profile=self.door.profile)
        before = files(folder / ".rin")
        variables = self.door.environment(bench.server)
        variables = {name: value for name, value in variables.items() if name.startswith("AWS_")}
        refused(rin(folder, "push", **variables), self.code, url, "origin")
        assert files(folder / ".rin") == before
        if self.door.url:
            refused(rin(without_cache(folder), "pull", **variables), self.code, url, "origin")


@dataclass(frozen=True)
class OnTheWire:
    """`rin push`, and `rin pull` in a clone, through a network that fails."""

    fault: Fault
    requests: str
    count: int = LASTING

    def __str__(self):
        return f"{self.fault.name} of {self.requests}"

    def plan(self):
        match = REQUESTS[self.requests]
        return first(self.count, self.fault, match) if self.count else always(self.fault, match)

    def run(self, bench, place):
        url = place.url
        credentials = bench.server.environment()
        with FaultProxy(bench.server.endpoint, self.plan()) as proxy:
            folder = with_remote(bench, url, endpoint_url=proxy.endpoint)
            pushed = rin(folder, "push", **credentials)
            if not self.count:
                return refused(pushed, 1, url)
            assert pushed.returncode == 0, pushed.stderr
            proxy.fault = self.plan()
            clone = without_cache(folder)
            pulled = rin(clone, "pull", **credentials)
            assert pulled.returncode == 0, pulled.stderr
            for done in (pushed, pulled):
                assert "40 rows in snapshot 1" in done.stderr
                assert "error" not in done.stderr
        ours, theirs = files(folder / ".rin/objects"), files(clone / ".rin/objects")
        assert ours == theirs
        return None


@dataclass(frozen=True)
class Damaged:
    """`rin pull` from a remote that lost an object, or whose object is not what it was."""

    how: str

    def __str__(self):
        return self.how

    def run(self, bench, place):
        url = place.url
        credentials = bench.server.environment()
        folder = with_remote(bench, url, endpoint_url=bench.server.endpoint)
        assert rin(folder, "push", **credentials).returncode == 0
        path = max((folder / ".rin" / OBJECTS).rglob("*"), key=lambda p: p.stat().st_size)
        if self.how == "missing":
            place.remove(object_path(path.name))
        else:
            data = bytearray(path.read_bytes())
            data[len(data) // 2] ^= 1
            place.write(object_path(path.name), bytes(data))
        clone = without_cache(folder)
        refused(rin(clone, "pull", **credentials), 5, path.name, url, f"is {self.how}", "rows 0 to")
        assert intact(clone / ".rin")
        assert not (clone / f".rin/{object_path(path.name)}").exists()
        # Who has it mends it.
        assert rin(folder, "verify", "--remote", "origin", **credentials).returncode == 5
        mended = rin(folder, "verify", "--remote", "origin", "--repair", **credentials)
        assert mended.returncode == 0, mended.stderr
        again = rin(clone, "pull", **credentials)
        assert again.returncode == 0, again.stderr
        assert files(folder / ".rin/objects") == files(clone / ".rin/objects")


COMMANDS = [
    *(AtTheDoor(door, 4 if issubclass(door.error, AccessError) else 1) for door in DOORS),
    OnTheWire(Fault.SLOW_DOWN, "any", 3),
    OnTheWire(Fault.RESET, "any", 2),
    OnTheWire(Fault.LOST_REPLY, "PUT commit", 1),
    OnTheWire(Fault.ERROR_500, "PUT object"),
    Damaged("missing"),
    Damaged("corrupt"),
]


@pytest.mark.parametrize("case", COMMANDS, ids=lambda case: f"{type(case).__name__}: {case}")
def test_the_command_line_says_it_in_one_sentence(case, ended):
    ended(case)


def test_a_remote_without_a_store_is_named(bench):
    url = f"s3://caches/{uuid.uuid4().hex}"
    folder = with_remote(bench, url, endpoint_url=bench.server.endpoint)
    refused(rin(without_cache(folder), "pull", **bench.server.environment()), 5, url)


# --- Disks -------------------------------------------------------------------------------

BULKY = {"sketch": ArraySpec("int8", (1024,)), "loss": ArraySpec("float32")}


class Disk:
    """A small file system of its own."""

    def __init__(self, folder):
        self.folder = folder

    def remount(self, options):
        mounted = ["mount", "-o", f"remount,{options}", str(self.folder)]
        subprocess.run(mounted, check=True, capture_output=True)

    @property
    def free(self):
        found = os.statvfs(self.folder)
        return found.f_bavail * found.f_frsize

    def leave(self, size):
        """Take all but so many bytes."""
        filler = self.folder / "filler"
        filler.write_bytes(b"")
        filler.write_bytes(bytes(max(0, self.free - size)))

    def clear(self):
        (self.folder / "filler").unlink()


@pytest.fixture
def disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a tmpfs is not permitted here")
    yield Disk(folder)
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def bulky(start, stop):
    """Rows of a kilobyte that do not compress."""
    noise = np.random.default_rng(7).integers(-128, 128, (400, 1024), np.int8)
    return {**rows(start, stop), "sketch": noise[start:stop]}


def bulky_writer(root):
    return CacheWriter(Cache(root, ID), BULKY, {}, 32)


def bulky_contents(root):
    cache = Cache(root, ID)
    assert verify(cache).problems == []
    snapshot = cache.snapshot()
    assert snapshot.read(0, snapshot.commit.slots, ["sketch"])["sketch"].any(axis=1).all()
    return contents(snapshot)


def left_overs(folder):
    return [path for path in folder.rglob(".tmp-*") if path.is_file()]


def add_bulky(root, start, stop):
    one = bulky_writer(root)
    one.add(bulky(start, stop))
    one.commit()


def test_a_disk_that_fills_up_keeps_what_was_committed(disk):
    disk.remount("size=256k")
    root = open_root(disk.folder / "store")
    for done in range(0, 400, 40):
        error = attempt(lambda start=done: add_bulky(root, start, start + 40))
        if error is not None:
            break
    assert done
    assert type(error) is StorageError
    assert re.search(rf"cannot write {root.url}/\S+: No space left on device", str(error))
    assert bulky_contents(root) == expected(range(done))
    assert left_overs(disk.folder) == []
    with pytest.raises(StorageError, match="No space left"):
        add_bulky(root, 0, 400)
    assert bulky_contents(root) == expected(range(done))
    disk.remount("size=4m")
    again = bulky_writer(root)
    assert again.add(bulky(0, 400)) == 400 - done
    again.commit()
    assert bulky_contents(root) == expected(range(400))


def test_a_disk_may_be_full_at_any_moment_of_a_commit(disk):
    """A few kilobytes are left: for some objects, for all but the commit, for everything."""
    root = open_root(disk.folder / "store")
    add_bulky(root, 0, 40)
    ended = []
    for number, space in enumerate(range(0, 140_000, 4096)):
        start = 40 + 3 * number
        disk.leave(space)
        error = attempt(lambda start=start: add_bulky(root, start, start + 3))
        ended.append("full" if error else "done")
        if error is not None:
            assert "No space left on device" in str(error)
            assert bulky_contents(root) == expected(range(start))
        assert left_overs(disk.folder) == []
        disk.clear()
        disk.remount(f"size={2 + number}m")
        add_bulky(root, 0, start + 3)
        assert bulky_contents(root) == expected(range(start + 3))
    assert [key for key, _ in itertools.groupby(ended)] == ["full", "done"]


def test_a_pull_onto_a_full_disk_resumes_when_there_is_room(disk, tmp_path):
    source = open_root(tmp_path / "source")
    one = bulky_writer(source)
    one.add(bulky(0, 200))
    one.commit()
    one.add(bulky(200, 400))
    one.commit()
    here = open_root(disk.folder / "store")
    disk.leave(300_000)
    with pytest.raises(StorageError, match=rf"cannot write {here.url}/.*No space left on device"):
        synchronise(Cache(source, ID), Cache(here, ID))
    assert Cache(here, ID).snapshot() is None
    assert intact(disk.folder / "store")
    assert left_overs(disk.folder) == []
    disk.clear()
    disk.remount("size=4m")
    synchronise(Cache(source, ID), Cache(here, ID))
    assert bulky_contents(here) == expected(range(400))
    assert files(source.folder) == files(disk.folder / "store")


@pytest.mark.parametrize("state", ["full", "read-only"])
def test_reading_through_needs_no_room_here(disk, tmp_path, state):
    source = open_root(tmp_path / "source")
    one = bulky_writer(source)
    one.add(bulky(0, 100))
    one.commit()
    if state == "full":
        disk.leave(0)
    else:
        disk.remount("ro")
    here = ObjectStore(open_root(disk.folder / "store"), [source])
    assert contents(Snapshot(here, Cache(source, ID).log.latest())) == expected(range(100))
    assert left_overs(disk.folder) == []


def test_a_read_only_store_is_read_and_not_written(disk, tmp_path):
    root = open_root(disk.folder / "store")
    fill(root, 0, BEFORE)
    disk.remount("ro")
    before = files(disk.folder)
    assert whole(root) == expected(range(BEFORE))
    refusal = rf"cannot write {root.url}/.*: Read-only file system"
    with pytest.raises(StorageError, match=refusal):
        fill(root, BEFORE, AFTER)
    there = open_root(tmp_path / "there")
    synchronise(Cache(root, ID), Cache(there, ID))
    assert whole(there) == expected(range(BEFORE))
    synchronise(Cache(there, ID), Cache(root, ID))  # nothing to be done
    fill(there, BEFORE, AFTER)
    with pytest.raises(StorageError, match=refusal):
        synchronise(Cache(there, ID), Cache(root, ID))
    with pytest.raises(StorageError, match=r"cannot write .*/new/.*: Read-only file system"):
        open_root(disk.folder / "new").prepare()
    assert files(disk.folder) == before
    disk.remount("rw")
    synchronise(Cache(there, ID), Cache(root, ID))
    assert whole(root) == expected(range(AFTER))


def test_a_folder_that_is_a_file_is_named(tmp_path):
    (tmp_path / "store").write_text("")
    root = open_root(tmp_path / "store")
    with pytest.raises(StorageError, match=str(tmp_path / "store")):
        fill(root, 0, BEFORE)
    with pytest.raises(NotFoundError, match=str(tmp_path / "store")):
        root.check_format()


@pytest.mark.parametrize("state", ["full", "read-only"])
def test_the_command_line_names_the_disk(disk, bench, state):
    folder = with_remote(bench, disk.folder / "store")
    if state == "full":
        disk.leave(16_384)
        reason = "No space left on device"
    else:
        disk.remount("ro")
        reason = "Read-only file system"
    refused(rin(folder, "push"), 1, str(disk.folder), reason)
    disk.remount("rw,size=4m")
    done = rin(folder, "push")
    assert done.returncode == 0, done.stderr
    objects = files(folder / ".rin/objects")
    assert files(disk.folder / "store/objects") == objects

    # And the way back, onto a store that is elsewhere.
    clone = without_cache(folder)
    with (clone / "rin.toml").open("a") as file:
        file.write(f'\n[storage]\nroot = "{disk.folder / "mine"}"\n')
    if state == "full":
        disk.leave(16_384)
    else:
        disk.remount("ro")
    refused(rin(clone, "pull"), 1, str(disk.folder / "mine"), reason)
    disk.remount("rw,size=8m")
    done = rin(clone, "pull")
    assert done.returncode == 0, done.stderr
    assert files(disk.folder / "mine/objects") == objects


if __name__ == "__main__":
    print(json.dumps(try_the_door(*sys.argv[1:])))
