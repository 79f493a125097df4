"""The store against plain dictionaries, whatever is done to it in whatever order.

Two colleagues' folders and one shared remote hold the same cache. The model knows, for each
place, which rows its newest snapshot has and who computed them.
"""

import contextlib
import tempfile
import uuid
from pathlib import Path
from unittest import mock

import fsspec
import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from rapidin_storage import Cache, CacheWriter, ObjectRef, ObjectStore, open_root
from rapidin_storage.compact import compact
from rapidin_storage.contents import GROUP, PAGE, parts
from rapidin_storage.gc import find_garbage, remove_garbage
from rapidin_storage.objects import OBJECTS, object_path
from rapidin_storage.repair import Repaired, repair
from rapidin_storage.roots import GRACE
from rapidin_storage.sync import compare, synchronise
from rapidin_storage.verify import verify
from tests.support.model_store import (
    CHUNK_ROWS,
    EVERY,
    EVERYTHING,
    PAGE_CHUNKS,
    PLACES,
    ROUTES,
    Rows,
    Writer,
    damage,
    damages,
    names,
    numbers,
    places,
    rows_of,
    slots,
)
from tests.support.stored import ARRAYS, ID, contents, digest


class Store(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.cleanup = contextlib.ExitStack()
        # Power cuts are not simulated, and small pages are shared, split and lost oftener.
        self.cleanup.enter_context(mock.patch("os.fsync"))
        for module in ("manifest", "commits"):
            name = f"rapidin_storage.{module}.PAGE_CHUNKS"
            self.cleanup.enter_context(mock.patch(name, PAGE_CHUNKS))
        folder = Path(self.cleanup.enter_context(tempfile.TemporaryDirectory()))
        name = uuid.uuid4().hex
        self.roots = {place: open_root(folder / place) for place in ("a", "b")}
        self.roots["remote"] = open_root(f"memory://{name}")
        memory = fsspec.filesystem("memory")
        self.cleanup.callback(lambda: memory.exists(name) and memory.rm(name, recursive=True))
        self.caches = {place: Cache(root, ID) for place, root in self.roots.items()}
        self.rows: dict[str, Rows] = {place: {} for place in PLACES}
        self.log: dict[str, list[str]] = {place: [] for place in PLACES}
        self.known: dict[str, Rows] = {}
        """Tree -> rows of every snapshot that there ever was."""
        self.lost: set[str] = set()
        """Trees that a repair could not save."""
        self.writers: dict[tuple[str, int], Writer] = {}
        self.touched: set[str] = set()
        self.missing: dict[str, dict[int, float]] = {place: {} for place in PLACES}
        """Number -> loss of the rows that repairs took out, in their old order."""

    @initialize(first=st.lists(st.tuples(places, numbers), max_size=3))
    def some_have_begun(self, first):
        for place, some in first:
            self.cache_some_rows(place, 0, some)

    def teardown(self):
        self.cleanup.close()

    # Writing

    def open_writer(self, place, slot):
        who = (2 * PLACES.index(place) + slot) / 8
        product = CacheWriter(self.caches[place], ARRAYS, {"made": "for a test"}, CHUNK_ROWS)
        return Writer(product, who, set(self.rows[place]))

    def put(self, writer, some):
        """A row's loss tells who computed it, so that it is seen whose row is kept."""
        self.put_losses(writer, {number: number + writer.who for number in some})

    def put_losses(self, writer, losses):
        values = {name: values[list(losses)] for name, values in EVERY.items()}
        values["loss"] = np.array(list(losses.values()), np.float32)
        new = {digest(n): loss for n, loss in losses.items() if digest(n) not in writer.seen}
        assert writer.product.add(values) == len(new)
        writer.seen |= new.keys()
        writer.held |= new

    def finish(self, place, writer):
        snapshot = writer.product.commit()
        self.touched.add(place)
        if writer.held:
            self.rows[place] = {**writer.held, **self.rows[place]}
            writer.seen |= self.rows[place].keys()
            writer.held = {}
            assert snapshot.commit.tree == self.caches[place].log.latest().tree
            self.check(place)

    @rule(place=places, slot=slots, some=numbers)
    def cache_some_rows(self, place, slot, some):
        writer = self.open_writer(place, slot)
        self.put(writer, some)
        self.finish(place, writer)

    @precondition(lambda self: any(self.missing.values()))
    @rule()
    def compute_again_what_repairs_took_out(self):
        for place in PLACES:
            if self.missing[place]:
                writer = self.open_writer(place, 0)
                self.put_losses(writer, self.missing[place])
                self.finish(place, writer)
                self.missing[place] = {}

    @rule(place=places, one=numbers, two=numbers, swap=st.booleans())
    def two_race(self, place, one, two, swap):
        first, second = self.open_writer(place, 0), self.open_writer(place, 1)
        self.put(first, one)
        self.put(second, two)
        for writer in (second, first) if swap else (first, second):
            self.finish(place, writer)
        self.put(first, two)
        self.finish(place, first)

    @rule(place=places, slot=slots, some=numbers)
    def add_to_a_writer_that_stays_open(self, place, slot, some):
        if (place, slot) not in self.writers:
            self.writers[place, slot] = self.open_writer(place, slot)
        self.put(self.writers[place, slot], some)

    @rule(place=places, slot=slots)
    def commit_and_go_on(self, place, slot):
        if writer := self.writers.get((place, slot)):
            self.finish(place, writer)

    @rule(place=places, slot=slots)
    def a_writer_dies(self, place, slot):
        self.writers.pop((place, slot), None)

    @rule(place=places)
    def close_holes(self, place):
        compact(self.caches[place])
        self.touched.add(place)
        if latest := self.caches[place].log.latest():
            assert latest.slots == latest.rows

    # Sharing

    def bring(self, source, target):
        """Rows are a set: all of both are there afterwards, and nobody's log was rewritten."""
        ours, theirs = self.rows[source], self.rows[target]
        empty = not self.log[target]
        added = synchronise(self.caches[source], self.caches[target]).commits
        self.touched.add(target)
        newest = self.caches[target].snapshot()
        after = {} if newest is None else contents(newest)
        assert after.keys() == ours.keys() | theirs.keys()
        for key, value in after.items():
            assert value in (ours.get(key), theirs.get(key))
        if empty and added:
            assert after == ours
            for number in self.caches[source].log.numbers():
                path = self.caches[source].log.path(number)
                assert self.roots[target].read(path) == self.roots[source].read(path)
        self.rows[target] = after
        assert not compare(self.caches[source], self.caches[target]).ahead
        assert synchronise(self.caches[source], self.caches[target]).commits == 0

    @rule(route=st.sampled_from(ROUTES))
    def push_or_pull(self, route):
        self.bring(*route)

    @rule(place=st.sampled_from(("a", "b")))
    def push_and_pull(self, place):
        self.bring(place, "remote")
        self.bring("remote", place)
        ours, theirs = self.caches[place].log.latest(), self.caches["remote"].log.latest()
        assert (ours and ours.tree) == (theirs and theirs.tree)
        assert compare(self.caches[place], self.caches["remote"]).equal

    # Removing

    def all_writers_die(self, place):
        for slot in (0, 1):
            self.a_writer_dies(place, slot)

    @rule(place=places)
    def collect_old_garbage(self, place):
        """What writers have not committed yet is young."""
        if self.log[place]:
            self.touched.add(place)
            assert find_garbage(self.roots[place], GRACE).entries == []

    @rule(place=places)
    def collect_all_garbage(self, place):
        """Nothing is left but what snapshots name. Writers would have to be done within it."""
        root = self.roots[place]
        if not self.log[place]:
            return
        self.touched.add(place)
        self.all_writers_die(place)
        garbage = find_garbage(root, EVERYTHING)
        assert remove_garbage(root, garbage) == garbage.size
        left = {entry.path.rpartition("/")[2] for entry in root.entries(OBJECTS)}
        assert left == {part.ref.digest for part in self.parts(place)}

    # Damage

    def parts(self, place):
        """All objects that snapshots of a place name, as far as they are there."""
        cache = self.caches[place]
        commits = [c for c in cache.log.read_all() if c.tree not in self.lost]
        commits += [c for c in [cache.log.latest()] if c and c.tree in self.lost]
        seen = set()
        found = [part for commit in commits for part in parts(cache.objects, commit, seen)]
        given_up = set()
        for commit in reversed(cache.log.read_all()):
            # What a later repair gave up is garbage should a writer that died have stored it again.
            found += [
                part
                for part in parts(cache.objects, commit, seen, given_up, lambda *_: None)
                if self.roots[place].size(object_path(part.ref.digest)) is not None
            ]
            given_up.update(commit.lost)
        return sorted(found, key=lambda part: part.ref.digest)

    def others(self, place, ref: ObjectRef):
        """The other places that have an object."""
        path = object_path(ref.digest)
        return [o for o in PLACES if o != place and self.roots[o].size(path) == ref.size]

    def mend(self, place, offline=False) -> Repaired:
        """What `rin verify --repair` does."""
        others = [self.roots[o] for o in PLACES if o != place and not offline]
        done = []
        for _ in range(4):
            problems = verify(self.caches[place], others).problems
            if not problems:
                break
            done.append(repair(self.caches[place], problems, others))
        return Repaired(
            sum(r.fetched for r in done), sum(r.rows for r in done), sum(r.given_up for r in done)
        )

    @rule(place=places, which=st.integers(0, 999), how=damages, offline=st.booleans())
    def an_object_is_damaged(self, place, which, how, offline):
        """Any other place that has it mends it; else just the rows of its chunks are gone."""
        if not self.log[place]:
            return
        self.all_writers_die(place)
        named = self.parts(place)
        part = named[which % len(named)]
        others = [] if offline else self.others(place, part.ref)
        if part.array == GROUP and not others:
            return  # without it nothing can be read, and the repair says so
        self.touched.add(place)
        cache, root, path = self.caches[place], self.roots[place], object_path(part.ref.digest)
        newest = cache.snapshot()
        doomed = rows_of(newest, part.ref)
        trees = {c.tree for c in cache.log.read_all() if names(cache, c, part.ref)}
        damage(root, path, how)

        if how == "remove" and others:
            verdict = verify(cache, [self.roots[other] for other in others])
            assert (verdict.problems, verdict.elsewhere) == ([], 1)
            upstreams = [self.roots[other] for other in others]
            ObjectStore(root, upstreams).get(part.ref)  # whoever reads it keeps it
            return
        problems = verify(cache).problems
        assert any(part.ref.digest in problem.message for problem in problems)
        assert any(problem.current for problem in problems) == (newest.commit.tree in trees)
        repaired = self.mend(place, offline)
        if others:
            assert (repaired.fetched, repaired.rows, repaired.given_up) == (1, 0, 0)
            return
        assert repaired.fetched == 0
        assert repaired.given_up >= 1
        if part.array == PAGE:  # earlier snapshots list most of its chunks
            left = contents(cache.snapshot())
            assert left.items() <= self.rows[place].items()
            gone = [key for key in doomed if key not in left]
            assert len(gone) == len(self.rows[place]) - len(left)
            doomed = gone
        assert repaired.rows == len(doomed)
        for key in doomed:
            self.missing[place][int.from_bytes(key, "little") - 1] = self.rows[place][key]
        self.rows[place] = {k: v for k, v in self.rows[place].items() if k not in doomed}
        self.lost |= trees

    @rule(place=places, how=damages)
    def the_newest_commit_is_damaged(self, place, how):
        """Another place that has it mends it; else the snapshot before is the newest."""
        if not self.log[place]:
            return
        self.all_writers_die(place)
        log, root = self.caches[place].log, self.roots[place]
        number = len(self.log[place])
        if log.read(number).lost or (number > 1 and log.read(number - 1).tree in self.lost):
            return  # a repair's own commit: the next repair would just make it again
        self.touched.add(place)
        parent = log.read(number).parent
        damage(root, log.path(number), how)

        before = self.log[place].pop()
        possible = [self.caches[other].log for other in PLACES if other != place]
        found = [other.read(number) for other in possible if number in other.numbers()]
        twins = {commit.digest: commit.tree for commit in found if commit.parent == parent}
        if how == "remove":  # nobody can tell; the next pull or push brings it back
            assert self.mend(place) == Repaired(0, 0, 0)
        else:
            assert [p.commit for p in verify(self.caches[place]).problems] == [number]
            repaired = self.mend(place)
            assert repaired.fetched + repaired.given_up == 1
            if set(twins) == {before}:
                assert repaired.fetched == 1
            if repaired.fetched:
                # Nothing tells ours from another's that began where ours did.
                tree = twins[log.latest().digest]
                self.log[place].append(log.latest().digest)
                self.rows[place] = self.known[tree]
                return
        assert log.numbers() == list(range(1, number))
        latest = log.latest()
        self.rows[place] = self.known[latest.tree] if latest else {}

    # Reading

    @rule(place=places, which=st.integers(0, 999))
    def read_an_old_snapshot(self, place, which):
        if not self.log[place]:
            return
        snapshot = Cache(self.roots[place], ID).snapshot(1 + which % len(self.log[place]))
        if snapshot.commit.tree not in self.lost:
            assert contents(snapshot) == self.known[snapshot.commit.tree]

    @invariant()
    def every_place_is_whole_and_holds_what_the_model_says(self):
        for place in sorted(self.touched):
            self.check(place)
        self.touched.clear()

    def check(self, place):
        cache = Cache(self.roots[place], ID)
        commits = cache.log.read_all()
        assert [c.number for c in commits] == list(range(1, len(commits) + 1))
        assert [c.parent for c in commits] == [None, *(c.digest for c in commits)][:-1]
        digests = [commit.digest for commit in commits]
        assert digests[: len(self.log[place])] == self.log[place]
        self.log[place] = digests

        verdict = verify(cache)
        assert (verdict.problems, verdict.elsewhere) == ([], 0)
        newest = cache.snapshot()
        if newest is None:
            assert self.rows[place] == {}
            return
        tree = newest.commit.tree
        if tree not in self.known:
            self.known[tree] = contents(newest)
            assert int(newest.digests.any(axis=1).sum()) == len(self.known[tree])
        # A tree names every byte below it, and all of them were just verified.
        assert self.known[tree] == self.rows[place]
        for commit in commits:
            assert commit.rows == len(self.known[commit.tree])


TestStore = Store.TestCase
TestStore.settings = settings(
    max_examples=60,
    stateful_step_count=25,
    deadline=None,
    derandomize=True,
    database=None,
    report_multiple_bugs=False,
    suppress_health_check=[HealthCheck.too_slow],
)
