"""The plain values of a pickle, read without running anything of it.

The Hugging Face Trainer leaves its arguments as `training_args.bin`: a zip of `torch.save` with a
pickle in it. Every class that it names becomes an empty stand-in here; nothing is imported, and
nothing but stand-ins is ever called.
"""

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

_LARGEST = 1 << 22


class StandIn:
    """In place of an object of any class: its state, if it has one.

    Attributes:
        kind: MODULE.CLASS.
        arguments: what it was made of.
    """

    kind = ""

    def __init__(self, *arguments: Any, **_: Any) -> None:
        self.arguments = arguments

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update({str(name): value for name, value in state.items()})


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        return type("StandIn", (StandIn,), {"kind": f"{module}.{name}"})

    def persistent_load(self, _: Any) -> Any:
        return None


def read_arguments(path: Path) -> StandIn | None:
    """Return what `torch.save` wrote of one object; None if it is not a small file of that kind.

    An enumeration's member is a `StandIn` whose first argument is its value.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            name = next(each for each in archive.namelist() if each.endswith("/data.pkl"))
            if archive.getinfo(name).file_size > _LARGEST:
                return None
            found = _Reader(io.BytesIO(archive.read(name))).load()
    except Exception:  # of a broken pickle, anything may be raised
        return None
    return found if isinstance(found, StandIn) else None


def plain(value: Any) -> Any:
    """Return the value of an enumeration's member, anything else as it is."""
    if isinstance(value, StandIn):
        return value.arguments[0] if value.arguments else None
    return value
