"""`rin report --open`: a page in the browser, or the path of one."""

import json
import os
import shutil
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest

from tests.support.forked import rin


@pytest.fixture(scope="module")
def asked(cached_project, tmp_path_factory):
    folder = Path(shutil.copytree(cached_project, tmp_path_factory.mktemp("asked") / "my project"))
    done = rin(folder, "retrieve", "--row", "data.jsonl:7", "--exact", 0, "--no-tokens")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def browser(tmp_path):
    """A browser that writes down what it is shown."""
    script, shown = tmp_path / "browser", tmp_path / "shown"
    script.write_text(f'#!/bin/sh\necho "$1" > {shown}\n')
    script.chmod(0o755)

    def run(folder, *arguments):
        done = rin(folder, "report", *arguments, BROWSER=str(script))
        assert done.returncode == 0, done.stderr
        return done, Path(unquote(urlparse(shown.read_text().strip()).path))

    return run


def test_it_opens_the_file_that_it_wrote(asked, browser, tmp_path):
    done, shown = browser(asked, "--html", tmp_path / "report.html", "--open")
    assert shown == tmp_path / "report.html"
    assert f"opened {shown}" in done.stderr
    again = rin(asked, "report", "--html", tmp_path / "report.html", "--open")
    assert (again.returncode, "--force" in again.stderr) == (4, True)


def test_on_its_own_it_keeps_the_page_under_rin(asked, browser):
    _, shown = browser(asked, "--open")
    assert shown.parent == asked / ".rin/pages"
    assert "<html" in shown.read_text()
    assert shown.stat().st_mode & 0o777 == 0o600
    _, again = browser(asked, "--open")
    assert again == shown


def test_it_opens_a_comparison_too(asked, browser):
    done, shown = browser(asked, "--against", ":q1", "--open")
    assert "opened " in done.stderr
    assert shown == asked / ".rin/pages/report.html"


def test_the_id_of_a_file_that_was_sent_is_no_path(asked, browser, tmp_path):
    report = json.loads(rin(asked, "report", "--json").stdout)
    sent = tmp_path / "sent.json"
    sent.write_text(json.dumps({**report, "id": "../../../evil"}))
    _, shown = browser(asked, sent, "--open")
    assert shown == asked / ".rin/pages/report.html"


def test_without_a_browser_it_says_where_the_page_is(asked, tmp_path):
    nothing = {name: "" for name in os.environ if name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")}
    done = rin(asked, "report", "--open", **{**nothing, "PATH": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    page = asked / f".rin/pages/{json.loads(rin(asked, 'report', '--json').stdout)['id']}.html"
    assert f"cannot find a browser here: open {page}" in done.stderr
