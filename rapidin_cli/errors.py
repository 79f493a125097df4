"""One error for everything that the user can fix, and the exit codes."""

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of the process; documented in docs/commands.md."""

    DONE = 0
    FAILURE = 1
    USAGE = 2
    NO_PROJECT = 3
    BAD_INPUT = 4
    STORE = 5
    CONFLICT = 6
    INTERRUPTED = 130


class RinError(Exception):
    """One sentence (what and where) and the next thing to do.

    Args:
        message: what went wrong and where, without a final full stop.
        hint: the next command or step.
    """

    exit_code = ExitCode.FAILURE

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.message, self.hint)


def _rebuild(kind: type[RinError], message: str, hint: str) -> RinError:
    return kind(message, hint=hint)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device, or the machine, has no memory left."""
    # By its name: importing torch takes seconds.
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))


def no_memory(error: BaseException) -> RinError:
    """Return the error that says so."""
    told = ". ".join(str(error).split("\n")[0].split(". ")[:2])
    return RinError(
        f"out of memory: {told}",
        hint="lower [cache] batch_tokens in rin.toml, or use another device",
    )


class UsageError(RinError):
    """Options that cannot be used, or not together."""

    exit_code = ExitCode.USAGE


class NoProjectError(RinError):
    """There is no rin.toml here or above."""

    exit_code = ExitCode.NO_PROJECT


class InputError(RinError):
    """Bad config, data, checkpoint or query."""

    exit_code = ExitCode.BAD_INPUT


class MissingError(RinError):
    """What was asked for is missing from the store, or damaged there."""

    exit_code = ExitCode.STORE
