"""Text files that travel with the package."""

from importlib.resources import files
from pathlib import Path

_CHECKOUT = Path(__file__).resolve().parents[2] / "templates"


def template_text(name: str) -> str:
    """Return the text of a file of the templates folder, with LF line ends.

    A wheel carries the folder as ``rapidin_cli/templates``; an editable installation reads the
    checkout's own ``templates/``, beside ``rapidin_cli/``.

    Raises:
        ValueError: ``name`` is not a plain file name.
        FileNotFoundError: no template has this name.
    """
    if not name or name.startswith(".") or "/" in name or "\\" in name:
        raise ValueError(f"not the name of a template: {name!r}")
    for folder in (files("rapidin_cli") / "templates", _CHECKOUT):
        source = folder / name
        if source.is_file():
            return source.read_bytes().decode("utf-8").replace("\r\n", "\n")
    raise FileNotFoundError(f"no template named {name!r}")
