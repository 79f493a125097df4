"""The documents are true: complete, linked, and every block of code in them runs."""

import dataclasses
import itertools
import json
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import typer.main
import yaml

from rapidin_cli.commands.main import app
from rapidin_cli.errors import ExitCode
from rapidin_cli.report import html
from rapidin_cli.setup.demo.dataset import build_rows
from rapidin_cli.workspace.config import Config, RemoteSettings, load_config
from tests.support import documents, served, tiny
from tests.support.documents import PAGES, ROOT

DOCS = ROOT / "docs"
COMMANDS, SETTINGS, API = (DOCS / f"{name}.md" for name in ("commands", "settings", "api"))
MEASUREMENTS = DOCS / "measurements.md"
RUN = [page for page in PAGES if {b.language for b in documents.blocks(page)} & {"sh", "python"}]
RUN += [page for page in PAGES if page.parent == DOCS and page not in RUN]
STARTS_BARE = "quickstart.md"
WRITE = "WRITE_SAMPLES" in os.environ  # put what is printed into the pages instead of comparing

# Blocks of commands that no test can run, by how they begin, and why.
NOT_RUN = {
    "make demo": "installs everything; tests/integration/test_demo.py runs the demo itself",
    "pip install .": "installs",
    'pip install "rapidin[ray]"': "installs, and needs a Ray cluster; test_ray.py has one",
    "#!/bin/bash\n#SBATCH": "needs SLURM",
}

TYPED = re.compile(
    r"^(?:srun |sudo |[A-Z_]+=\S+ )*(?:rin|make|pip|aws|kubectl|sbatch|git|python) ", re.MULTILINE
)


def commands():
    return typer.main.get_command(app).commands.items()  # type: ignore[attr-defined]


def parameters(command):
    """Its own, or those of all commands of a group."""
    for inner in getattr(command, "commands", {"": command}).values():
        yield from inner.params


def options(command):
    for parameter in parameters(command):
        for option in (*parameter.opts, *parameter.secondary_opts):
            if option.startswith("--") and option != "--help":
                yield option


@pytest.mark.parametrize(("name", "command"), commands())
def test_every_command_and_option_is_documented(name, command):
    text = documents.section(COMMANDS, f"`rin {name}")
    assert text, f"{COMMANDS} has no section on rin {name}"
    described = set(re.findall(r"`(--[a-z-]+)`", text))
    assert set(options(command)) <= described
    rows = set(re.findall(r"^\| (`--[^|]+) \|", text, re.MULTILINE))
    listed = {option for row in rows for option in re.findall(r"--[a-z-]+", row)}
    assert listed <= set(options(command)), "an option that there is not"


def test_the_options_before_the_command_are_documented():
    text = COMMANDS.read_text().partition("\n## ")[0]
    for parameter in typer.main.get_command(app).params:
        for option in parameter.opts:
            assert option == "--help" or f"{option}`" in text, option


def test_every_setting_is_documented():
    config = Config()
    for table in dataclasses.fields(config):
        value = getattr(config, table.name)
        if table.name == "remote":
            value = RemoteSettings("")
        if dataclasses.is_dataclass(value):
            for setting in dataclasses.fields(value):
                assert f"`{setting.name}`" in SETTINGS.read_text(), f"[{table.name}] {setting.name}"


def test_every_exit_code_is_documented():
    for code in ExitCode:
        assert f"| {int(code)} |" in documents.section(COMMANDS, "Exit codes")


def test_every_field_of_the_report_is_documented():
    schema = json.loads(Path(html.__file__).with_name("schema.json").read_text())
    parts = schema["properties"], *(schema["$defs"][n]["properties"] for n in ("query", "example"))
    for name in itertools.chain(*parts):
        assert f"| `{name}` |" in API.read_text(), name


def test_the_readme_is_short():
    """A newcomer leaves at the first wall of numbers: those are in docs/measurements.md."""
    assert len((ROOT / "README.md").read_text().split()) <= 1200


def test_the_pages_name_only_commands_that_exist():
    known = {name for name, _ in commands()}
    for page in PAGES:
        for used in re.findall(
            r"(?:^\$? ?(?:\.venv/bin/)?|`)rin ([a-z]+)", page.read_text(), re.MULTILINE
        ):
            assert used in known, page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for link in documents.links(page):
        target, _, anchor = link.partition("#")
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), link
        if anchor:
            assert anchor in documents.anchors(path), link


def test_the_index_names_every_page():
    linked = set(documents.links(DOCS / "README.md"))
    assert linked >= {page.name for page in DOCS.glob("*.md")} - {"README.md"}


def test_a_cell_of_the_measurements_holds_one_number():
    cells = list(documents.cells(MEASUREMENTS))
    assert len(cells) > 100
    for line, cell in cells:
        interval = re.fullmatch(r"-?[\d.]+ to -?[\d.]+", cell)
        assert interval or len(re.findall(r"[\d.,]*\d", cell)) <= 1, f"line {line}: {cell}"


def test_every_section_with_a_measurement_has_a_command():
    for title, text in documents.sections(MEASUREMENTS):
        assert "|---" not in text or re.search(r"python tests/|ame command|make \w", text), title


def test_scripts_and_options_that_the_pages_name_exist():
    for page in PAGES:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        for script, rest in re.findall(r"\b(tests/[\w/]+\.py)([^`\n]*)", text):
            source = (ROOT / script).read_text(encoding="utf-8")
            for option in re.findall(r"--[a-z-]+", rest):
                assert f'"{option}"' in source, f"{page.name}: {script} {option}"


def test_pictures_have_a_description():
    for page in PAGES:
        for described, target in re.findall(r"!\[([^\]]*)\]\(([^)]*)\)", page.read_text()):
            assert len(described) > 20, target
            assert (page.parent / target).stat().st_size < 200_000


@pytest.mark.parametrize(
    "entry", documents.headings(DOCS / "troubleshooting.md"), ids=lambda entry: entry[:60]
)
def test_the_program_prints_what_the_entry_quotes(entry):
    if quoted := re.fullmatch(r"`(.+)`", entry):
        assert documents.is_printed(quoted.group(1)), "no such text in the source"


def test_blocks_that_are_not_run_have_a_reason():
    used = set()
    for page in PAGES:
        for block in documents.blocks(page):
            assert block.language, f"{page}:{block.line} says no language"
            if block.language == "text" and TYPED.search(block.text):
                reasons = [start for start in NOT_RUN if block.text.startswith(start)]
                assert reasons, f"{page}:{block.line} is neither run nor excused"
                used.update(reasons)
    assert used == set(NOT_RUN)


def test_samples_of_data_are_read_as_what_they_are(tmp_path):
    for page in PAGES:
        for block in documents.blocks(page):
            match block.language:
                case "json":
                    json.loads(block.text)
                case "jsonl":
                    assert all(json.loads(line) for line in block.text.splitlines())
                case "yaml":
                    assert yaml.safe_load(block.text)
                case "toml":
                    tomllib.loads(block.text)
                    (tmp_path / "rin.toml").write_text(block.text)
                    load_config(tmp_path)


@pytest.fixture(scope="module")
def shims(tmp_path_factory):
    with served.commands(tmp_path_factory.mktemp("served")) as folder:
        yield folder


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """The demo's rows with an untrained model, named as the demo's; nothing is cached yet."""
    folder = tmp_path_factory.mktemp("docs") / "project"
    tiny.project(folder)
    rows = build_rows()
    tiny.write_jsonl(folder / "data/train.jsonl", rows[:60] + rows[-10:])
    (folder / "data.jsonl").unlink()
    (folder / "rin.toml").unlink()
    (folder / "model").mkdir()
    (folder / "adapter").rename(folder / "model/checkpoint-184")
    for command in ("init -q", "add .", "commit -q -m data"):
        who = ("-c", "user.name=rin", "-c", "user.email=rin@example.org")
        subprocess.run(["git", *who, *command.split()], cwd=folder, check=True)
    return folder


@pytest.fixture(scope="module")
def asked(project, shims, tmp_path_factory):
    """The same where the quickstart has been followed as far as a first answer."""
    folder = tmp_path_factory.mktemp("asked") / "project"
    shutil.copytree(project, folder)
    done = (
        "rin init --yes; rin cache; rin curvature; git add rin.toml rin.lock; git commit -qm rin;"
        "rin retrieve --prompt 'What is the capital of France?' --response 'It is Paris.'"
    )
    code, printed = run("sh", done, folder, shims)
    assert code == 0, printed
    return folder


def run(language, text, folder, shims, **environment):
    """Run a block; what it printed, both streams in the order of writing."""
    command = ["bash", "-euo", "pipefail", "-c", text]
    if language == "python":
        (folder.parent / "block.py").write_text(text)
        command = [str(shims / "python"), str(folder.parent / "block.py")]
    done = subprocess.run(
        command,
        cwd=folder, text=True, check=False, timeout=120,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={
            **os.environ,
            "PATH": f"{shims}:{os.environ['PATH']}",
            "COLUMNS": "80",
            "GIT_AUTHOR_NAME": "rin", "GIT_AUTHOR_EMAIL": "rin@example.org",
            "GIT_COMMITTER_NAME": "rin", "GIT_COMMITTER_EMAIL": "rin@example.org",
            **environment,
        },
    )  # fmt: skip
    return done.returncode, done.stdout


@pytest.mark.parametrize("page", RUN, ids=lambda page: page.name)
def test_the_blocks_run(page, project, asked, shims, s3_server, tmp_path):
    folder = tmp_path / "project"
    shutil.copytree(project if page.name == STARTS_BARE else asked, folder)
    repository = tmp_path / "repository.git"
    shared = f"git clone -q --bare . {repository}; git remote add origin {repository}"
    assert run("sh", shared, folder, shims) == (0, "")
    environment = {"AWS_ENDPOINT_URL": s3_server.endpoint, "REPOSITORY": str(repository)}
    for block in documents.blocks(page):
        where = f"{page.name}:{block.line}"
        if block.language in ("sh", "python"):
            code, printed = run(block.language, block.text, folder, shims, **environment)
            assert code == 0, f"{where}\n{printed}"
        elif block.language == "console" and page.parent == DOCS:
            for command, shown in documents.steps(block):
                _, printed = run("sh", command, folder, shims, **environment)
                if WRITE and not documents.is_output(shown, printed):
                    documents.replace_sample(page, command, shown, printed)
                    shown = printed
                assert documents.is_output(shown, printed), f"{where}: {command}\n{printed}"
