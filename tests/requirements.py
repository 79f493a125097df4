"""Print the dependency groups that the tests need (pip before 25.1 cannot read them)."""

import tomllib
from pathlib import Path

groups = tomllib.loads(Path(__file__).parents[1].joinpath("pyproject.toml").read_text())
for name in ("test", "slow"):
    print("\n".join(groups["dependency-groups"][name]))
