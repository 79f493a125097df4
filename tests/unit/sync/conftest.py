"""A folder, `here`, a `third` one, and a second place, `there`, of every kind."""

import uuid

import pytest

from rapidin_storage import open_root


@pytest.fixture
def here(tmp_path):
    return open_root(tmp_path / "here")


@pytest.fixture
def third(tmp_path):
    return open_root(tmp_path / "third")


@pytest.fixture(params=["folder", "memory", "s3"])
def there(request, tmp_path):
    if request.param == "folder":
        return open_root(tmp_path / "there")
    if request.param == "memory":
        return open_root(f"memory://{uuid.uuid4().hex}")
    server = request.getfixturevalue("s3_server")
    return open_root(f"s3://caches/{uuid.uuid4().hex}", endpoint_url=server.endpoint)


@pytest.fixture
def tick(there):
    """Seconds after which a file that is written again is seen to be newer: S3 tells whole ones."""
    return 1.1 if there.url.startswith("s3:") else 0.02
