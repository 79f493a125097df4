"""Errors, grouped by what a caller would do about them."""


class StorageError(Exception):
    """The store could not be read or written (disk full, no permission, unreachable)."""

    code = "storage"


class AccessError(StorageError):
    """The place refuses us: no or wrong credentials, no such bucket. Retrying will not help."""

    code = "access"


class NoBucketError(AccessError):
    """There is no such bucket."""

    code = "no-bucket"


class NotFoundError(StorageError):
    """Something that a commit names, or that the caller asked for, is not in the store."""

    code = "not-found"


class CorruptError(StorageError):
    """Bytes exist but do not match their name or the format."""

    code = "corrupt"


class FormatError(StorageError):
    """The store was written by a newer program, or is not a store of ours."""

    code = "format"


class ConflictError(StorageError):
    """Other writers won every attempt; nothing was lost, trying again is safe."""

    code = "conflict"
