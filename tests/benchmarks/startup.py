"""CPU seconds of a question, from the shell to its answer, and what is imported for it.

    python tests/benchmarks/startup.py FOLDER --rounds 5

FOLDER is a project with cached rows, such as `rin demo FOLDER` makes. Each round runs
`rin retrieve --exact 0` and, as a measure of the machine at that moment, `import torch` and
`from transformers import LlamaForCausalLM`, which rin cannot do without. CPU seconds are those
of the user and of the system; where processes share a core they cost up to twice as much as
alone, so compare with the other two lines, not with another day's.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import statistics
import subprocess
import sys
from pathlib import Path

ASK = ("retrieve", "--exact", "0", "--prompt", "Who wrote it?", "--response", "Nobody knows.")
COMMANDS = {
    "rin retrieve --exact 0": ("-m", "rapidin_cli", *ASK),
    "import torch": ("-c", "import torch"),
    "transformers' Llama": ("-c", "from transformers import LlamaForCausalLM"),
}
_LINE = re.compile(r"import time:\s+(\d+) \|\s+(\d+) \| +(\S+)")


def seconds(folder: Path, arguments: tuple[str, ...]) -> float:
    """CPU seconds of one process and of those that it has waited for."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=_environment(), check=True,
        capture_output=True,
    )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def imports(folder: Path) -> dict[str, tuple[float, int]]:
    """Seconds and modules of each top-level package, without what it imports in turn."""
    told = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "rapidin_cli", *ASK],
        cwd=folder, env=_environment(), check=True, capture_output=True, text=True,
    ).stderr  # fmt: skip
    found: dict[str, tuple[float, int]] = {}
    for own, _, name in _LINE.findall(told):
        parts = name.split(".")
        package = ".".join(parts[: 2 if parts[0] in ("torch", "transformers") else 1])
        spent, count = found.get(package, (0.0, 0))
        found[package] = spent + int(own) / 1e6, count + 1
    return found


def _environment() -> dict[str, str]:
    root = Path(__file__).resolve().parents[2]
    paths = [str(root), str(root / "storage"), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--most", type=int, default=12, help="packages to list")
    options = parser.parse_args()
    seconds(options.folder, COMMANDS["rin retrieve --exact 0"])  # files are read, words indexed
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(options.rounds):
        for name, arguments in COMMANDS.items():
            times[name].append(seconds(options.folder, arguments))
    print(f"CPU seconds of {options.rounds} rounds: least, median")
    for name, each in times.items():
        print(f"{name:24} {min(each):6.2f} {statistics.median(each):6.2f}")
    print("\nimported: seconds, modules")
    found = sorted(imports(options.folder).items(), key=lambda item: -item[1][0])
    for package, (spent, count) in found[: options.most]:
        print(f"{package:24} {spent:6.2f} {count:6}")


if __name__ == "__main__":
    main()
