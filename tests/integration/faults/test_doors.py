"""Who is not let in is told why, and by which command to go on."""

import json
import re
import shutil
import subprocess
import sys
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from rapidin_storage import AccessError, Cache, NoBucketError, StorageError, open_root
from rapidin_storage.objects import OBJECTS, object_path
from rapidin_storage.verify import verify
from tests.support import s3
from tests.support.command_line import (
    REPOSITORY,
    SECRET,
    environment,
    refused,
    rin,
    with_remote,
    without_cache,
)
from tests.support.faults import Fault, FaultProxy, always, first
from tests.support.faulty import LASTING, OPERATIONS, PATIENCE, REQUESTS, files, intact
from tests.support.stored import ID

NO_BUCKET = "s3://no-such-bucket/team"


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
                *(sys.executable, "-m", "tests.integration.faults.test_doors"),
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


if __name__ == "__main__":
    print(json.dumps(try_the_door(*sys.argv[1:])))
