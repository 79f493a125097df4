"""What rin needs, carried to a machine without a network: all of it but PyTorch.

    python tests/gpu/wheels.py fetch wheels --python 3.12     # where there is a network
    python tests/gpu/wheels.py unpack wheels build/gpu-site   # where there is none

`unpack` makes no virtual environment: one that is made inside another does not see PyTorch in
that. A wheel is a zip file of what lies in site-packages, so it is enough to unpack them all and
put the folder on PYTHONPATH, and no pip is needed. Both need nothing but the standard library.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
# Only for S3; only for downloads.
LEFT_OUT = "s3fs", "hf-xet"
PLATFORMS = [f"manylinux_2_{n}_x86_64" for n in (28, 27, 24, 17, 12, 5)]
PLATFORMS += ["manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64"]


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def named(requirement: str) -> str:
    """The package that a requirement such as `numpy>=2.0; python_version < "4"` names."""
    found = re.match(r"[\w.-]+", requirement)
    assert found, requirement
    return plain(found[0])


def project() -> dict[str, Any]:
    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return table


def needed(report: dict[str, Any], roots: list[str]) -> list[str]:
    """Names and versions of what is reached from `roots`, going neither over PyTorch nor extras.

    Args:
        report: what `pip install --report` wrote.
    """
    known = {plain(item["metadata"]["name"]): item["metadata"] for item in report["install"]}
    reached: set[str] = set()
    waiting = [named(root) for root in roots]
    while waiting:
        name = waiting.pop()
        if name in reached or name not in known or name in ("torch", *LEFT_OUT):
            continue
        reached.add(name)
        below = known[name].get("requires_dist", [])
        waiting += [named(each) for each in below if not re.search(r"extra\s*==", each)]
    return [f"{name}=={known[name]['version']}" for name in sorted(reached)]


def fetch(folder: Path, python: str, torch: str) -> None:
    """Find out with pip what is needed, and download it without PyTorch and what that needs."""
    roots = [each for each in project()["dependencies"] if named(each) not in LEFT_OUT]
    target = ["--only-binary=:all:", "--implementation=cp", f"--python-version={python}"]
    target += [f"--platform={each}" for each in PLATFORMS]
    pip = [sys.executable, "-m", "pip"]
    with tempfile.TemporaryDirectory() as place:
        report = Path(place) / "report.json"
        asked = ["install", "--dry-run", "--ignore-installed", "--quiet", f"--report={report}"]
        given = [torch, *(each for each in roots if named(each) != "torch")]
        subprocess.run([*pip, *asked, f"--target={place}/none", *target, *given], check=True)
        names = needed(json.loads(report.read_text()), roots)
    shutil.rmtree(folder, ignore_errors=True)  # two versions of a package would be mixed up
    download = ["download", "--quiet", "--no-deps", f"--dest={folder}"]
    subprocess.run([*pip, *download, *target, *names], check=True)
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(f"{len(names)} wheels for Python {python} on x86-64 Linux, {size / 2**20:.1f} MiB")


def misfit(wheel: Path) -> str:
    """Say why a wheel is not for this Python and machine; "" if it is."""
    python, abi, system = wheel.stem.split("-")[-3:]
    ours = f"cp{sys.version_info[0]}{sys.version_info[1]}"
    if system != "any" and platform.machine() not in system:
        return f"{wheel.name} is not for {platform.machine()}"
    if abi not in ("none", "abi3") and ours not in python.split("."):
        return f"{wheel.name} is not for Python {platform.python_version()}"
    return ""


def is_there(wheel: Path) -> bool:
    """Whether the machine's own package is to be kept: numpy, whose kin are compiled for it."""
    if plain(wheel.name.split("-")[0]) != "numpy":
        return False
    try:
        return int(importlib.metadata.version("numpy").split(".")[0]) >= 2
    except importlib.metadata.PackageNotFoundError:
        return False


def unpack(folder: Path, site: Path) -> None:
    """Unpack the wheels into a new folder, and write there which version of rin this is."""
    if importlib.util.find_spec("torch") is None:
        raise SystemExit(f"{sys.executable} has no PyTorch: make gpu-check PYTHON=...")
    shutil.rmtree(site, ignore_errors=True)
    site.mkdir(parents=True)
    wheels = sorted(folder.glob("*.whl"))
    if why := next(filter(None, map(misfit, wheels)), ""):
        version = f"{sys.version_info[0]}.{sys.version_info[1]}"
        raise SystemExit(f"{why}: where there is a network, make gpu-wheels GPU_PYTHON={version}")
    for wheel in wheels:
        if not is_there(wheel):
            with zipfile.ZipFile(wheel) as packed:
                packed.extractall(site)
    name, version = project()["name"], project()["version"]
    metadata = site / f"{name}-{version}.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    print(
        f"{len(wheels)} wheels" if wheels else f"no wheels in {folder}: what is installed is used"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("fetch")
    command.add_argument("folder", type=Path)
    command.add_argument("--python", default="3.12")
    command.add_argument("--torch", default="torch", help="the PyTorch that is there")
    command = commands.add_parser("unpack")
    command.add_argument("folder", type=Path)
    command.add_argument("site", type=Path)
    options = parser.parse_args()
    if options.command == "fetch":
        fetch(options.folder, options.python, options.torch)
    else:
        unpack(options.folder, options.site)


if __name__ == "__main__":
    main()
