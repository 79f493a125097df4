"""Files written whole or not at all."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_whole(path: Path, text: str, *, replace: bool = True, mode: int = 0o666) -> int:
    """Write a text file; readers see the old text or the new one. Return its size in bytes.

    Args:
        replace: replace a file that already exists.
        mode: permissions, which the umask narrows.

    Raises:
        FileExistsError: it already exists, and must not be replaced.
        OSError: it cannot be written; nothing is left behind.
    """
    content = text.encode("utf-8")
    # A name of its own: two processes may write the same file.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        if replace:
            temporary.replace(path)
        else:
            # A link, unlike a rename, fails when somebody made the file in the meantime.
            os.link(temporary, path)
            temporary.unlink()
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return len(content)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a file beside `path` to write; afterwards it takes its place.

    Raises:
        OSError: it cannot be written; nothing is left behind.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        with temporary.open("rb+") as stream:
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
