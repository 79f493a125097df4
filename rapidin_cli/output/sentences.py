"""Errors of the store, and all others, as sentences with a next command."""

from rapidin_cli.errors import ExitCode, RinError, no_memory, out_of_memory
from rapidin_storage import (
    AccessError,
    ConflictError,
    CorruptError,
    FormatError,
    NoBucketError,
    NotFoundError,
    StorageError,
)


def translated(error: Exception) -> tuple[RinError, ExitCode]:
    """Return the sentence, the next command and the exit code for an error."""
    match error:
        case ConflictError():
            return RinError(str(error), hint="run the same command again"), ExitCode.CONFLICT
        case FormatError():
            hint = "upgrade rin, or use another store in rin.toml"
            return RinError(str(error), hint=hint), ExitCode.STORE
        case NoBucketError():
            hint = "create the bucket, or correct the url in rin.toml"
            return RinError(str(error), hint=hint), ExitCode.BAD_INPUT
        case AccessError():
            hint = (
                "set AWS_PROFILE, or [remote.NAME] profile in rin.toml; `aws sts "
                "get-caller-identity` and rin doctor show who you are"
            )
            return RinError(str(error), hint=hint), ExitCode.BAD_INPUT
        case CorruptError() | NotFoundError():
            hint = "rin verify --repair; add --remote NAME if it is on a remote"
            return RinError(str(error), hint=hint), ExitCode.STORE
        case StorageError():
            return RinError(str(error), hint="rin doctor"), ExitCode.FAILURE
        case OSError(strerror=str(reason), filename=filename):
            where = f"{filename}: " if filename else ""
            return RinError(f"{where}{reason}", hint="rin doctor"), ExitCode.FAILURE
    if out_of_memory(error):
        return no_memory(error), ExitCode.FAILURE
    return (
        RinError(
            f"unexpected {type(error).__name__}: {error}",
            hint="run it again as `rin --debug ...` and report what it prints",
        ),
        ExitCode.FAILURE,
    )
