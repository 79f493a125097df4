"""The rules of the house can be broken, and are then named; docs/architecture.md is true."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import house

PAGE = house.ROOT / "docs/architecture.md"


@pytest.fixture
def copied(tmp_path):
    """A copy of the code, to break."""
    for name in ("rapidin_cli", "storage"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(house.ROOT / name, tmp_path / name, ignore=ignored)
    shutil.copy(house.ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def prepend(path: Path, line: str) -> None:
    path.write_text(path.read_text() + f"\n\ndef _deliberate():\n    {line}\n")


def test_the_house_is_in_order():
    assert house.complaints() == []


def test_a_circle_is_named_also_if_the_import_is_inside_a_function(copied):
    wrong = "from rapidin_cli.data.loading import load_dataset"
    prepend(copied / "rapidin_cli/data/files.py", wrong)
    (found,) = house.complaints(copied)
    assert "circle" in found
    assert "rapidin_cli.data.files" in found


def test_long_files_long_functions_and_private_names_are_named(copied):
    target = copied / "rapidin_cli/report/span.py"
    body = "".join(f"    x = {n}\n" for n in range(house.MOST_FUNCTION_LINES))
    more = f"\n\ndef long():\n{body}" + "\n" * house.MOST_LINES
    wrong = "from rapidin_cli.output.sanitise import _HIDDEN\n"
    target.write_text(target.read_text() + wrong + more)
    found = house.complaints(copied)
    assert len(found) == 3
    assert any("_HIDDEN" in each for each in found)
    (copied / "rapidin_cli/another.py").touch()
    assert any("entries" in each for each in house.complaints(copied))


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("rapidin_cli/data/files.py", "from rapidin_cli.report import view"),
        ("rapidin_cli/influence/scan.py", "from rapidin_cli.api import Project"),
        ("storage/rapidin_storage/local.py", "from rapidin_storage import cache"),
        ("storage/rapidin_storage/errors.py", "from rapidin_cli import errors"),
    ],
)
def test_an_arrow_that_goes_up_fails_the_contract(copied, file, line):
    prepend(copied / file, line)
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-logo", "--no-cache"],
        cwd=copied,
        env={"PATH": "", "PYTHONPATH": f"{copied}:{copied / 'storage'}", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "BROKEN" in done.stdout


def test_the_page_names_files_that_are_there():
    named = set(re.findall(r"`([\w/.-]+\.(?:py|md|json|jsonl|toml|j2|js))`", PAGE.read_text()))
    assert len(named) > 20
    for name in named:
        places = [house.ROOT, house.ROOT / "rapidin_cli", house.ROOT / "storage/rapidin_storage"]
        assert any((place / name).exists() for place in places), name


def test_the_page_draws_every_room():
    drawn = PAGE.read_text()
    rooms = [e.name for e in (house.ROOT / "rapidin_cli").iterdir() if (e / "__init__.py").exists()]
    for room in rooms:
        assert re.search(rf"\b{room}/", drawn), room
