"""Settings that every test shares."""

import os
import time

# Two spinning OpenMP pools on two cores slow one another tenfold.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# The demo trains with two threads whatever that says, beside another process of the tests.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.support import impatient, s3, tiny

assert impatient.SHARE < 1
torch.set_num_threads(1)

START = time.monotonic()
SLOW_UNTIL = 45  # minutes after which no slow test begins: CI ends a run after 90


# Modules of which each needs more than ten seconds, the longest first.
LONG = (
    *("test_demo", "test_ray", "test_commands", "test_gpu_check", "test_docs"),
    *("test_influence", "test_killed", "test_sharing", "test_bad_inputs", "test_html_use"),
    *("test_parts", "test_curvature_killed", "test_stages"),
    *("test_mishaps", "test_terminal_report", "test_network", "test_doors", "test_disks"),
    *("test_copies", "test_collected", "test_store_model", "test_walk", "test_packaging"),
    *("test_kinds", "test_init", "test_rows", "test_people_models", "test_trl", "test_trainers"),
    *("test_verified", "test_html_report", "test_command_line", "test_curation", "test_objects"),
    *("test_completion", "test_bulk", "test_fit", "test_evaluate", "test_storage", "test_exact"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long modules begin first, so that of two processes none is left with one at the end.

    Slow tests come last of all: what a slow machine leaves out is named, and all the rest was run.
    """
    for item in items:
        if item.path.stem in LONG:
            item.add_marker("long")

    def place(item: pytest.Item) -> tuple[bool, int]:
        long = LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG)
        return item.get_closest_marker("slow") is not None, long

    items.sort(key=place)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    minutes = (time.monotonic() - START) / 60
    if item.get_closest_marker("slow") is not None and minutes > SLOW_UNTIL:
        pytest.skip(f"a slow test, and this run is {minutes:.0f} minutes old")


@pytest.fixture(scope="session")
def tokenizer() -> object:
    return tiny.tokenizer()


@pytest.fixture(scope="session")
def cached_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny project with everything cached; tests must not change it."""
    from rapidin_cli import Project

    folder = tiny.project(tmp_path_factory.mktemp("cached"))
    Project.open(folder).cache()
    return folder


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[s3.Server]:
    """One SeaweedFS for the session; its credentials are the environment's, as users have them."""
    server = s3.start(tmp_path_factory.mktemp("seaweedfs"))
    before = {name: os.environ.get(name) for name in server.environment()}
    os.environ.update(server.environment())
    server.make_bucket("caches")
    yield server
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    server.stop()
