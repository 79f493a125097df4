"""Bad input: one sentence that says what and where, the documented exit code, the next step.

And nothing is lost: the store, rin.toml and rin.lock are as they were before.
"""

import json
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rapidin_cli.errors import ExitCode
from tests.support import tiny
from tests.support.bad_inputs import ASK, BAD, CACHE, CASES, LONGEST, USAGE, put, remove
from tests.support.forked import rin


@pytest.fixture
def project(cached_project, tmp_path):
    return Path(shutil.copytree(cached_project, tmp_path / "project"))


def test_there_are_sixty():
    assert len(CASES) >= 60


@pytest.mark.parametrize("case", CASES)
def test_it_gets_a_sentence_a_code_and_the_next_step(case, project):
    case.change(project)
    before = kept(project)
    done = rin(project, *case.command)
    explained(done, case.code, case.said)
    assert kept(project) == before


def explained(done, code, said):
    """One sentence of a line, what to do, and no traceback."""
    talk = done.stderr
    assert done.returncode == code, talk
    assert "Traceback" not in talk
    assert "error: unexpected" not in talk
    usage = re.search(r"Try '(rin .*)' for help", talk)  # Typer's own words for what it parses
    if usage:
        assert talk.count("─ Error ─") == 1
    else:
        (sentence,) = re.findall(r"^error: (.*)$", talk, re.MULTILINE)
        assert len(sentence) < LONGEST
        assert not sentence.endswith(".")
        (step,) = re.findall(r"^next: +(.+)$", talk, re.MULTILINE)
        assert step
        assert talk.rstrip().endswith(step)
    assert said in talk


def kept(folder):
    """Everything but what only speeds things up."""
    tokens = {folder / "data", folder / ".rin" / "data"}
    return {
        path.relative_to(folder): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "fingerprints.json" and not tokens & {*path.parents}
    }


def test_the_hint_names_every_score(project):
    said = rin(project, *ASK, "--score", "nope").stderr
    assert re.search("next:  choose one of .*auto.*ekfac", said)


def test_without_ray_the_hint_is_what_the_readme_says(project):
    code = (
        "import sys; sys.modules['ray'] = None; sys.argv = ['rin', 'cache', '--executor', 'ray'];"
        "from rapidin_cli.commands.main import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=project, capture_output=True, text=True, check=False
    )
    explained(done, USAGE, "Ray is not installed")
    assert 'pip install "rapidin[ray]"' in done.stderr


def test_scores_that_cannot_be_are_refused_before_the_model_is_read(project):
    remove("base/model.safetensors")(project)
    for options in (("--score", "nope"), ("--score", "dot", "--damping", "1")):
        explained(rin(project, *ASK, *options), USAGE, "score")


def test_brackets_stay_in_every_help_text():
    import typer.main

    from rapidin_cli.commands.main import app

    def each(command, names=()):
        yield names, command
        for name, inner in getattr(command, "commands", {}).items():
            yield from each(inner, (*names, name))

    for names, command in each(typer.main.get_command(app)):
        texts = [command.help or "", *(getattr(p, "help", "") or "" for p in command.params)]
        wanted = {word for text in texts for word in re.findall(r"\[[a-z]+\]", text)}
        if wanted:
            shown = rin(Path.cwd(), *names, "--help").stdout
            assert all(word in shown for word in wanted), names
            assert "\\[" not in shown


# --- Files that are unusual, but not bad ----------------------------------------------------


def test_a_byte_order_mark_and_windows_lines_change_no_row(project):
    data = (project / "data.jsonl").read_bytes()
    put("data.jsonl", b"\xef\xbb\xbf" + data.replace(b"\n", b"\r\n") + b"\r\n")(project)
    toml = (project / "rin.toml").read_bytes()
    put("rin.toml", b"\xef\xbb\xbf" + toml.replace(b"\n", b"\r\n"))(project)
    done = rin(project, "status", "--exit-code")
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_tokenizer_needs_no_pad_token(project):
    path = project / "base/tokenizer_config.json"
    known = json.loads(path.read_text())
    assert known.pop("pad_token")
    path.write_text(json.dumps(known))
    tiny.write_jsonl(project / "data.jsonl", tiny.rows(44))
    assert "4 rows computed" in rin(project, "cache").stderr
    done = rin(project, "retrieve", "--prompt", "Where is the cat?", "--generate", "--exact", 0)
    assert done.returncode == 0, done.stderr


# --- The machine ----------------------------------------------------------------------------


def process(folder, *arguments, **options):
    """A real one, as its environment and its limits matter."""
    return subprocess.run(
        [sys.executable, "-m", "rapidin_cli", *map(str, arguments)],
        cwd=folder, capture_output=True, text=True, check=False, **options,
    )  # fmt: skip


def test_without_home_and_temporary_folder_it_works(project):
    removed = ("HOME", "TMPDIR", "XDG_CACHE_HOME", "HF_HOME", "USER", "LOGNAME")
    environment = {k: v for k, v in os.environ.items() if k not in removed}
    done = process(project, *ASK, "--exact", 0, env={**environment, "TMPDIR": "/nowhere"})
    assert done.returncode == 0, done.stderr
    assert "raised" in done.stdout


def test_a_full_disk_is_named_and_the_cache_goes_on_when_there_is_room(project):
    tiny.write_jsonl(project / "data.jsonl", tiny.rows(60))
    before = kept(project / ".rin")

    def small():
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    done = process(project, "cache", preexec_fn=small)
    explained(done, ExitCode.FAILURE, "File too large")
    after = kept(project / ".rin")
    assert {path: after.get(path) for path in before} == before
    assert "20 rows missing" in rin(project, "status").stdout
    assert "20 rows computed, 60 cached" in rin(project, "cache").stderr


@pytest.fixture
def read_only(project):
    """The project on a disk that cannot be written."""
    place = project.parent / "read-only"
    place.mkdir()
    bind = ["mount", "--bind", str(project), str(place)]
    if shutil.which("mount") is None or subprocess.run(bind, capture_output=True).returncode:
        pytest.skip("mounting is not permitted here")
    subprocess.run(["mount", "-o", "remount,ro,bind", str(place)], check=True)
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_a_folder_that_cannot_be_written_is_named(read_only, project):
    remove(".rin/fingerprints.json")(project)
    assert rin(read_only, "status").returncode == 0
    done = rin(read_only, *ASK, "--exact", 0)
    assert (done.returncode, "raised" in done.stdout) == (0, True)
    assert "warning: not saved, so rin report cannot show it again: " in done.stderr
    tiny.write_jsonl(project / "data.jsonl", tiny.rows(41))
    before = kept(project)
    for command in (CACHE, ("remote", "add", "origin", "s3://bucket/p")):
        explained(rin(read_only, *command), ExitCode.FAILURE, "Read-only file system")
    assert kept(project) == before
    (project / "rin.toml").unlink()
    explained(rin(read_only, "init", "--yes"), BAD, "Read-only file system")
