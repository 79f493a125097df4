"""Operations on a store while the service or the network fails."""

import hashlib
import shutil
import tempfile
import threading
import uuid
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from rapidin_storage import (
    Cache,
    CorruptError,
    ObjectStore,
    Root,
    Snapshot,
    StorageError,
    open_root,
)
from rapidin_storage.objects import OBJECTS
from rapidin_storage.sync import synchronise
from rapidin_storage.verify import verify
from tests.support import s3
from tests.support.faults import Fault, FaultProxy, always, first
from tests.support.stored import ID, contents, expected, rows, writer

BEFORE, AFTER = 10, 16  # rows of the first commit, and with the second

ATTEMPTS = 16  # for one request: at 60 s without an answer each, a quarter of an hour

PATIENCE = 60  # seconds until a refusal


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
