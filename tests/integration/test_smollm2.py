"""The main job on a real model and real data: SmolLM2-135M-Instruct and Alpaca rows."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROWS, STEPS = 64, 5
DATA = Path(__file__).parents[3] / "shared/data/alpaca_en_demo.json"

# `rin` with some words, and then the most memory that the process had, since it was started.
RIN_AND_TELL_PEAK = (
    "import sys, pathlib, rapidin_cli.commands.main as cli\n"
    "sys.argv = ['rin', *sys.argv[1:]]\n"
    "try:\n"
    "    cli.main()\n"
    "finally:\n"
    "    print(pathlib.Path('/proc/self/status').read_text(), file=sys.stderr)\n"
)

ANSWER = (
    "To make crepes, whisk flour, eggs and milk, rest the batter, and fry thin rounds in a hot "
    "buttered pan until golden."
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("default"),
    pytest.mark.skipif(not DATA.exists(), reason=f"needs the Alpaca rows in {DATA}"),
]


def run(folder, *command):
    # Two threads, as many as the smallest machine has; the other tests keep to one.
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=folder, capture_output=True, text=True, check=False, timeout=540,
        env={**os.environ, "OMP_NUM_THREADS": "2"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("smollm2")
    run(folder, Path(__file__).parents[1] / "smollm2.py", folder, DATA, ROWS, STEPS)
    run(folder, "-m", "rapidin_cli", "init", "--yes")
    text = (folder / "rin.toml").read_text()
    assert 'files = ["alpaca.json"]' in text
    assert f'path = "out/checkpoint-{STEPS}"' in text
    assert 'template = "chat"' in text
    forecast = run(folder, "-m", "rapidin_cli", "cache", "--dry-run").stderr
    assert f"{ROWS} rows to compute (0 cached)" in forecast
    talk = run(folder, "-c", RIN_AND_TELL_PEAK, "cache").stderr
    assert "gradients of 420 layers, 2,442,240 parameters" in talk
    assert f"{ROWS} rows computed, {ROWS} cached" in talk
    (folder / "forecast.txt").write_text(forecast)
    (folder / "peak.txt").write_text(str(peak_of(talk)))
    return folder


def peak_of(talk):
    return int(re.search(r"VmHWM:\s+(\d+) kB", talk).group(1)) * 1024


def promised(project):
    """The model and 1.5 GB."""
    return sum(f.stat().st_size for f in (project / "base").glob("*.safetensors")) + 1.5e9


def test_the_memory_of_caching_is_what_the_dry_run_said(project):
    number, unit = re.search(
        r"([\d.]+) (MB|GB) of memory", (project / "forecast.txt").read_text()
    ).groups()
    said = float(number) * {"MB": 1e6, "GB": 1e9}[unit]
    peak = int((project / "peak.txt").read_text())
    assert said == pytest.approx(peak, rel=0.2)
    assert peak < promised(project)


@pytest.mark.parametrize("more", [[], ["--exact", "1"], ["--score", "ekfac", "--within", "5s"]])
def test_a_default_question_takes_the_model_and_little_more(project, more):
    """Thirty tokens, all rows. The curvature is collected in as little."""
    if "ekfac" in more:
        settings = project / "rin.toml"
        text = settings.read_text()
        settings.write_text(text.replace("[curvature]", "[curvature]\nrows = 20", 1))
        collected = run(project, "-c", RIN_AND_TELL_PEAK, "curvature").stderr
        assert peak_of(collected) < promised(project)
    asked = "--prompt", "How do I make crepes?", "--response", ANSWER
    told = run(project, "-c", RIN_AND_TELL_PEAK, "retrieve", *asked, *more).stderr
    assert peak_of(told) < promised(project)


@pytest.mark.parametrize("score", ["rapidin", "cosine"])
@pytest.mark.parametrize("line", [7, 52, 302])
def test_a_training_row_finds_itself_first(project, score, line):
    rows = json.loads((project / "alpaca.json").read_text())
    starts = [
        number
        for number, text in enumerate((project / "alpaca.json").read_text().splitlines(), 1)
        if re.match(r" \{", text)
    ]
    assert len(starts) == len(rows)
    done = run(
        project, "-m", "rapidin_cli", "retrieve", "--row", f"alpaca.json:{line}",
        "--score", score, "--no-tokens", "--exact", "0", "--json",
    )  # fmt: skip
    examples = json.loads(done.stdout)["queries"][0]["examples"]
    assert examples[0]["id"] == f"alpaca.json:{line}"
    assert examples[0]["score"] > 2 * examples[1]["score"]


def test_a_generation_gets_a_report(project):
    done = run(
        project, "-m", "rapidin_cli", "retrieve", "--prompt", "How do I make crepes?",
        "--generate", "--max-new-tokens", "20", "--top", "3", "--exact", "1", "--token-top", "0",
        "--json",
    )  # fmt: skip
    query = json.loads(done.stdout)["queries"][0]
    assert query["source"] == "generated"
    assert sum(token["explained"] for token in query["tokens"]) == 20
    assert query["scored"] == ROWS
    largest = max(abs(example["score"]) for example in query["examples"])
    assert query["exact"]["forward_mode"]
    assert query["residual"] < 1e-3 * largest
    assert query["exact"]["residual"] < 1e-3 * largest
    run(project, "-m", "rapidin_cli", "report", "--html", "report.html")
    assert (project / "report.html").stat().st_size > 20_000
