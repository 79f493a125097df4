"""A store that nothing has happened to, and a remote that has all of it."""

import shutil

import pytest

from rapidin_storage import Cache, open_root
from rapidin_storage.sync import synchronise
from tests.support.damage import CHUNK, COMMITS
from tests.support.stored import ID, rows, writer


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pristine")
    one = writer(open_root(folder), CHUNK)
    start = 0
    for stop in COMMITS:
        one.add(rows(start, stop))
        one.commit()
        start = stop
    return folder


@pytest.fixture
def root(pristine, tmp_path):
    return open_root(shutil.copytree(pristine, tmp_path / "store"))


@pytest.fixture(scope="module")
def pushed(pristine, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pushed")
    synchronise(Cache(open_root(pristine), ID), Cache(open_root(folder), ID))
    return folder


@pytest.fixture
def remote(pushed, tmp_path):
    """Has all that the store had before anything happened to it."""
    return open_root(shutil.copytree(pushed, tmp_path / "remote"))
