"""Settings that every test shares."""

import os

# Two spinning OpenMP pools on two cores slow one another tenfold.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests import s3, tiny

torch.set_num_threads(1)


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
