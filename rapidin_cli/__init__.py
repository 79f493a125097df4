"""rin: which training examples, and which words in them, made a language model say that?"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from rapidin_cli.output.version import __version__

if TYPE_CHECKING:
    from rapidin_cli.api import Project
    from rapidin_cli.influence.options import Options
    from rapidin_cli.influence.queries import Question

__all__ = ["Options", "Project", "Question", "__version__"]
_HOMES = {"Options": "influence.options", "Project": "api", "Question": "influence.queries"}


def __getattr__(name: str) -> Any:
    """Import the API when it is first used: the command line must start without torch."""
    if name not in _HOMES:
        raise AttributeError(name)
    return getattr(import_module(f"rapidin_cli.{_HOMES[name]}"), name)
