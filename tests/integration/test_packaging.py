"""What a user gets: the wheel, a fast start, and documents that are true."""

import os
import re
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import typer.main

from rapidin_cli.cli import app
from rapidin_cli.errors import ExitCode

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_wheel_works_in_another_folder(tmp_path):
    """Built and installed by pip, templates included, and run from elsewhere."""
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", tmp_path, ROOT], check=True
    )
    wheel = next(tmp_path.glob("rapidin-*.whl"))
    names = zipfile.ZipFile(wheel).namelist()
    assert "rapidin_cli/templates/report.html.j2" in names
    assert "rapidin_storage/py.typed" in names
    assert not [n for n in names if n.startswith(("tests/", "templates/", "storage/"))]
    site = tmp_path / "site"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", site, wheel],
        check=True,
    )
    code = (
        "import rapidin_cli, rapidin_storage; from rapidin_cli.resources import template_text;"
        "print(rapidin_cli.__file__, rapidin_storage.__file__, len(template_text('report.js')))"
    )
    environment = {**os.environ, "PYTHONPATH": str(site)}
    shown = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert shown.stdout.count(str(site)) == 2
    (tmp_path / "data.jsonl").write_text('{"prompt": "a", "response": "b"}\n')
    made = subprocess.run(
        [sys.executable, str(site / "bin/rin"), "init", "--yes"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    assert "data.jsonl" in (tmp_path / "rin.toml").read_text()


def test_start_up_imports_nothing_heavy():
    code = (
        "import sys, rapidin_cli.cli;"
        "print([m for m in ('torch', 'transformers', 'peft', 'zarr', 's3fs', 'numpy', 'fsspec')"
        " if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_costs_little_more_than_its_libraries():
    """0.3 s is the promise; machines differ, so the bound is on the ratio to bare imports."""

    def best(*arguments):
        times = []
        for _ in range(5):
            start = time.perf_counter()
            subprocess.run([sys.executable, *arguments], capture_output=True, check=True)
            times.append(time.perf_counter() - start)
        return min(times)

    bare = best("-c", "import typer.main, typer.rich_utils")
    assert best("-m", "rapidin_cli", "--help") < 2.5 * bare


def commands():
    return typer.main.get_command(app).commands.items()  # type: ignore[attr-defined]


def parameters(command):
    """Its own, or those of all commands of a group."""
    for inner in getattr(command, "commands", {"": command}).values():
        yield from inner.params


@pytest.mark.parametrize(("name", "command"), commands())
def test_every_command_and_option_is_documented(name, command):
    section = re.search(rf"### `rin {name}[^\n]*\n(.*?)(?=\n##|\Z)", README, re.DOTALL)
    assert section, f"README has no section on rin {name}"
    for parameter in parameters(command):
        for option in (*parameter.opts, *parameter.secondary_opts):
            if option.startswith("--") and option != "--help":
                assert option in section.group(1), f"README does not describe {name} {option}"


def test_every_setting_and_exit_code_is_documented():
    import dataclasses

    from rapidin_cli.config import Config, RemoteSettings

    config = Config()
    for table in dataclasses.fields(config):
        value = getattr(config, table.name)
        if table.name == "remote":
            value = RemoteSettings("")
        if dataclasses.is_dataclass(value):
            for setting in dataclasses.fields(value):
                assert f"`{setting.name}`" in README, f"[{table.name}] {setting.name}"
    for code in ExitCode:
        assert f"| {int(code)} |" in README


def test_the_readme_names_only_commands_that_exist():
    known = {name for name, _ in commands()}
    for used in re.findall(r"^\$? ?(?:\.venv/bin/)?rin ([a-z]+)", README, re.MULTILINE):
        assert used in known


def test_links_in_the_readme_lead_somewhere():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", README):
        assert (ROOT / target).exists(), target
