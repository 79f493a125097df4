"""Pages on disk: for their owner only, whole or not at all, never over another unasked."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rapidin_cli.errors import InputError


def save_page(text: str, path: Path, *, force: bool) -> int:
    """Write a page with mode 0600; return its bytes.

    Raises:
        InputError: the file is there and ``force`` is false, or it cannot be written.
    """
    refuse_existing(path, force=force)
    content = text.encode("utf-8")
    with _explained(path):
        # mkstemp creates its file with mode 0600, whatever the umask.
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            if force:
                Path(temporary).replace(path)
            else:
                # A link, unlike a rename, fails when somebody made the file in the meantime.
                os.link(temporary, path)
                Path(temporary).unlink()
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    return len(content)


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
