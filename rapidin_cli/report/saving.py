"""Pages on disk: for their owner only, whole or not at all, never over another unasked."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rapidin_cli.errors import InputError
from rapidin_cli.output.files import write_whole


def save_page(text: str, path: Path, *, force: bool) -> int:
    """Write a page with mode 0600; return its bytes.

    Raises:
        InputError: the file is there and ``force`` is false, or it cannot be written.
    """
    refuse_existing(path, force=force)
    with _explained(path):
        return write_whole(path, text, replace=force, mode=0o600)


def refuse_existing(path: Path, *, force: bool) -> None:
    """Raise InputError if there is a file that must not be replaced."""
    with _explained(path):
        if not force and os.path.lexists(path):
            raise FileExistsError(str(path))


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except FileExistsError:
        raise InputError(f"{path} is there already", hint="add --force to replace it") from None
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {error.strerror}", hint="choose another file"
        ) from None
