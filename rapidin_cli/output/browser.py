"""Show a page in the user's browser."""

import webbrowser
from pathlib import Path


def open_page(path: Path) -> bool:
    """Open a file in the browser; False if there is none, as on a server."""
    try:
        return webbrowser.open(path.resolve().as_uri())
    except (webbrowser.Error, OSError):
        return False
