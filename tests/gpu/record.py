"""What a run has found so far, in a file that is whole at every moment."""

import datetime
import json
import re
import subprocess
import time
from pathlib import Path
from typing import Any

SCHEMA = "rin.gpu-check/1"
ROOT = Path(__file__).parents[2]
BAD = "failed", "died", "too slow", "not reached"


class Record:
    """Written to `path` after every step; docs/measurements/README.md says what it holds.

    Args:
        path: where; None until the machine has said its name.
        steps: (name, kind) of all that is to be done.
    """

    def __init__(self, path: Path | None, steps: list[tuple[str, str]], **about: Any) -> None:
        self.path = path
        self._start = time.monotonic()
        self._said: dict[str, Any] = {
            "schema": SCHEMA,
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "commit": _commit(),
            **about,
            "machine": {},
            "seconds": 0.0,
            "steps": [
                {"name": name, "kind": kind, "status": "not reached"} for name, kind in steps
            ],
        }

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self._start

    @property
    def steps(self) -> list[dict[str, Any]]:
        """What is known of each step."""
        steps: list[dict[str, Any]] = self._said["steps"]
        return steps

    @property
    def bad(self) -> list[dict[str, Any]]:
        """The steps that did not pass."""
        return [step for step in self.steps if step["status"] in BAD]

    def machine(self, facts: dict[str, Any]) -> None:
        """Note on which machine this is, and write to its file if none was named."""
        self._said["machine"] = facts
        if self.path is None:
            slug = re.sub(r"[^a-z0-9]+", "-", facts["device"].lower()).strip("-")
            self.path = ROOT / "docs" / "measurements" / f"gpu-{slug}.json"
        self.save()

    def step(self, name: str, **facts: Any) -> dict[str, Any]:
        """Note what is known of a step, and return all of it."""
        found = next(step for step in self.steps if step["name"] == name)
        found.update(facts)
        self.save()
        return found

    def save(self) -> None:
        """Write the file."""
        if self.path is None:
            return
        self._said["seconds"] = round(self.seconds, 1)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        whole = self.path.with_name(self.path.name + ".part")
        whole.write_text(json.dumps(self._said, indent=1) + "\n")
        whole.replace(self.path)

    def table(self) -> str:
        """All steps, with their figures."""
        lines = []
        for step in self.steps:
            seconds = f"{step['seconds']:.1f} s" if "seconds" in step else ""
            lines.append(f"{step['status']:12} {seconds:>8}  {step['kind']}: {step['name']}")
            if step.get("error"):
                lines.append(f"{'':24}{step['error']}")
            lines += [f"{'':24}{line}" for line in _lines(step)]
        return "\n".join(lines)


def _lines(step: dict[str, Any]) -> list[str]:
    """The figures of a timing; of a check, which has too many, what came nearest to failing."""
    figures = step.get("figures", {})
    if step["kind"] == "timing":
        return [f"{name}: {_short(value)}" for name, value in figures.items()]
    bounded = [(name, each) for name, each in figures.items() if isinstance(each, dict)]
    if not bounded:
        return []
    name, worst = max(bounded, key=lambda pair: pair[1]["found"] / max(pair[1]["at_most"], 1e-30))
    said = f"{_short(worst['found'])} of {_short(worst['at_most'])}"
    return [f"{len(figures)} figures; nearest to its limit: {name}: {said}"]


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return f"{_short(value['found'])} (at most {_short(value['at_most'])})"
    if isinstance(value, list):
        return ", ".join(map(_short, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _commit() -> str:
    """The commit of the checkout, where git is and knows."""
    asked = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    try:
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
