"""`rin` on a project whose remote is not as it should be."""

import os
import re
import shutil
import threading
from pathlib import Path

from tests.support import forked, s3

AWS = {
    "AWS_CONFIG_FILE": "/dev/null",
    "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_DEFAULT_REGION": s3.REGION,
}

ONE_BY_ONE = threading.Lock()  # processes of multiprocessing are not made for many threads

SECRET = "wrong-secret-0451"

REPOSITORY = Path(__file__).parents[2]


def environment(**credentials):
    """This process's, with no credentials but those."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    return {**own, **AWS, **credentials}


def rin(folder, *arguments, **variables):
    credentials = dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), "")
    with ONE_BY_ONE:
        return forked.rin(folder, *arguments, **{**AWS, **credentials, **variables})


def with_remote(bench, url, **settings):
    """A copy of the tiny project with a remote."""
    folder = bench.new_folder() / "project"
    shutil.copytree(bench.project, folder)
    lines = "".join(f'{name} = "{value}"\n' for name, value in settings.items() if value)
    with (folder / "rin.toml").open("a") as file:
        file.write(f'\n[remote.origin]\nurl = "{url}"\n{lines}')
    return folder


def without_cache(folder):
    """A colleague's clone."""
    clone = folder.parent / "clone"
    shutil.copytree(folder, clone, ignore=shutil.ignore_patterns(".rin"))
    return clone


def refused(done, code, *said):
    """Assert that a command ended with one sentence, which says all that."""
    talk = done.stdout + done.stderr
    assert done.returncode == code, talk
    assert len(re.findall("^error:", done.stderr, re.MULTILINE)) == 1, talk
    assert "\nnext: " in done.stderr
    for text in said:
        assert text in done.stderr, talk
    for text in ("Traceback", "test-secret", SECRET):
        assert text not in talk
