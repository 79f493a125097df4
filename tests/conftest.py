"""Settings that every test shares."""

import os
import time

# Two spinning OpenMP pools on two cores slow one another tenfold.
os.environ.setdefault("OMP_NUM_THREADS", "1")
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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests last: what a slow machine leaves out is named, and all the rest was run."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)


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
