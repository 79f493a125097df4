"""The Python interface: a project, and what can be done with it::

    from rapidin_cli import Project
    project = Project.open(".")
    project.cache()
    report = project.retrieve([Question("q1", prompt="...", response="...")])

The command line rests on it.
"""

from rapidin_cli.workspace import asking, moving, runs
from rapidin_cli.workspace.workspace import Workspace


class Project(Workspace):
    """The folder that holds rin.toml, opened with `Project.open`."""

    cache = runs.cache
    forecast = runs.forecast
    curvature = runs.curvature
    session = asking.session
    retrieve = asking.retrieve
    push = moving.push
    pull = moving.pull
