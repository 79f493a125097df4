"""What the tests of reports share: a browser and a report to open in it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser

from rapidin_cli import Project
from rapidin_cli.report.writing import publish
from tests.support import tiny
from tests.support.browser import chromium, make_report


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as launched:
        yield launched


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    return make_report()


@pytest.fixture(scope="module")
def path(report: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("html") / "report.html"
    publish(report, target)
    return target


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A project with curvature, whose rows hold whole gradients; tests must not change it."""
    folder = tiny.project(tmp_path_factory.mktemp("prepared"), 24, dimensions=8192)
    project = Project.open(folder)
    project.cache()
    list(project.curvature())
    return folder
