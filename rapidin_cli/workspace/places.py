"""Where a project's caches are: its store, and the remotes behind it."""

import contextlib
from functools import cached_property
from pathlib import Path

from rapidin_cli.errors import InputError, MissingError
from rapidin_cli.workspace.config import Config
from rapidin_cli.workspace.remotes import choose, open_place, open_remote
from rapidin_storage import (
    Cache,
    CorruptError,
    NotFoundError,
    ObjectStore,
    Root,
    Snapshot,
    StorageError,
    open_root,
)
from rapidin_storage.roots import FORMAT_FILE, FORMAT_MARK


class Places:
    """The store of a project and its remotes; none is contacted before it is needed.

    Args:
        folder: the project's.
        config: names the remotes, and the store unless it is given.
        store: name of a remote, URL or folder to use instead of `[storage] root`.

    Attributes:
        store: where caches are written.
    """

    def __init__(self, folder: Path, config: Config, store: str = "") -> None:
        self._folder = folder
        self._config = config
        self.store = open_place(store or config.storage.root, config, folder)

    @cached_property
    def _opened(self) -> dict[str, Root | InputError]:
        found: dict[str, Root | InputError] = {}
        for name, settings in self._config.remote.items():
            try:
                found[name] = open_remote(name, settings, self._folder)
            except InputError as error:  # it may be another one that is needed
                found[name] = error
        return found

    @property
    def remotes(self) -> dict[str, Root]:
        """Name -> root of every `[remote.NAME]` that can be opened."""
        return {name: root for name, root in self._opened.items() if isinstance(root, Root)}

    @property
    def unusable(self) -> dict[str, InputError]:
        """Name -> why a `[remote.NAME]` cannot be opened."""
        return {name: why for name, why in self._opened.items() if isinstance(why, InputError)}

    @property
    def upstreams(self) -> list[Root]:
        """The remotes that are not the store itself."""
        return [root for root in self.remotes.values() if root.url != self.store.url]

    def choose(self, name: str) -> str:
        """Return the name of a remote: the one given, the only one, or `origin`.

        Raises:
            InputError: there is none of that name, or none at all.
        """
        return choose(self._config, name)

    def remote(self, name: str) -> Root:
        """Return the root of the remote that `choose` returns.

        Raises:
            InputError: there is none of that name, or it cannot be opened.
        """
        root = self._opened[self.choose(name)]
        if isinstance(root, InputError):
            raise root
        return root

    def place(self, remote: str) -> tuple[Root, list[Root]]:
        """Return the store, or the named remote, and the others that may have what it lacks.

        Raises:
            InputError: as `remote`.
        """
        if not remote:
            return self.store, self.upstreams
        root = self.remote(remote)
        others = [self.store, *self.upstreams]
        return root, [other for other in others if other.url != root.url]

    def need_store(self, root: Root, hint: str = "", *, mend: bool = False) -> None:
        """Refuse a place without a store, or with one written by a newer program.

        Args:
            hint: how to create one.
            mend: rewrite a damaged format mark.

        Raises:
            MissingError, FormatError, CorruptError
        """
        if root is self.store:
            hint = "rin pull, or rin cache" if self.upstreams else "rin cache"
        try:
            root.check_format()
        except NotFoundError as error:
            raise MissingError(str(error), hint=hint or "rin push") from None
        except CorruptError:
            if not mend:
                raise
            root.write(FORMAT_FILE, FORMAT_MARK)

    def cache(self, cache_id: str) -> Cache:
        """Return a cache of the store, which reads what it lacks from the remotes."""
        return Cache(self.store, cache_id, self.upstreams)

    def newest(self, cache_id: str) -> Snapshot | None:
        """Return the newest snapshot of a cache: the store's, else the first remote's.

        Objects that are not on this machine are read from the remotes, verified, and kept in
        `.rin`.

        Raises:
            StorageError: the store cannot be read; or it has no snapshot, and a remote that may
                have one cannot be read.
        """
        here = open_root(self._folder / ".rin") if self.store.shared else self.store
        behind = [*([self.store] if self.store.shared else []), *self.upstreams]
        failures: list[StorageError] = []
        for root in (self.store, *self.upstreams):
            try:
                snapshot = Cache(root, cache_id).snapshot()
                if snapshot is None:
                    with contextlib.suppress(NotFoundError):
                        root.check_format()  # nothing may mean: written by a newer program
            except StorageError as error:
                if root is self.store:
                    raise
                failures.append(error)
                continue
            if snapshot is not None:
                if root is not here:
                    with contextlib.suppress(StorageError):  # a full disk does not keep, but reads
                        here.prepare()
                return Snapshot(ObjectStore(here, behind), snapshot.commit)
        if failures:
            raise failures[0]
        return None
