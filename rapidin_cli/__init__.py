"""rin: which training examples, and which words in them, made a language model say that?"""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from rapidin_cli.api import Project

if TYPE_CHECKING:
    from rapidin_cli.influence.options import Options
    from rapidin_cli.influence.queries import Question

__version__ = version("rapidin")
__all__ = ["Options", "Project", "Question", "__version__"]


def __getattr__(name: str) -> Any:
    """Import the API when it is first used: the command line must start without torch."""
    if name == "Project":
        return Project
    if name == "Question":
        from rapidin_cli.influence.queries import Question

        return Question
    if name == "Options":
        from rapidin_cli.influence.options import Options

        return Options
    raise AttributeError(name)
