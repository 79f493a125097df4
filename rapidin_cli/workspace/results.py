"""Saved results: every `rin retrieve` leaves one, for `rin report` to show."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rapidin_cli.errors import InputError, MissingError
from rapidin_cli.output.files import write_whole
from rapidin_cli.report.schema import lacking

_NEWEST = "rin report shows the newest result, and rin retrieve makes one"
_ID = re.compile(r"[0-9a-f]{12}")


class Results:
    """The reports in `.rin/results/`, named by their id.

    Attributes:
        unsaved: why the last report was not saved; empty if it was.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.unsaved = ""

    def save(self, report: Mapping[str, Any]) -> Path:
        """Write a report, whole or not at all, readable by its owner only.

        If that fails (a full disk, somebody else's folder), it goes on, and `unsaved` says why:
        the answer exists, and may have taken minutes.
        """
        from rapidin_cli.report.view import dump

        path = self._folder / f"{report['id']}.json"
        self.unsaved = ""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_whole(path, dump(report), mode=0o600)
        except OSError as error:
            self.unsaved = f"{path}: {error.strerror}"
        return path

    def page(self, report: Mapping[str, Any]) -> Path:
        """Return the path for a page of a report that is only to be viewed."""
        # The id of a file that somebody sent may be a path.
        name = report["id"] if _ID.fullmatch(str(report.get("id"))) else "report"
        folder = self._folder.with_name("pages")
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{name}.html"

    def names(self) -> list[str]:
        """Ids, the newest last."""
        paths = sorted(self._folder.glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
        return [path.stem for path in paths]

    def load(self, reference: str = "") -> dict[str, Any]:
        """Return a saved report: the newest, one by the start of its id, or a JSON file.

        Raises:
            MissingError: no such result. InputError: the file is not a report.
        """
        names = self.names()
        if reference.endswith(".json"):
            path = Path(reference)
        elif not names:
            raise MissingError("there are no saved results", hint="rin retrieve --prompt TEXT")
        else:
            matching = [name for name in names if name.startswith(reference)]
            if not matching:
                raise MissingError(
                    f"no saved result has an id that starts with {reference!r}",
                    hint=f"rin report {names[-1]} is the newest",
                )
            path = self._folder / f"{matching[-1]}.json"
        try:
            report = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror}", hint=_NEWEST) from None
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path} is not JSON: {error}", hint=_NEWEST) from None
        if not isinstance(report, dict) or report.get("schema") != "rin.report/1":
            raise InputError(f"{path} is not a rin report", hint=_NEWEST)
        if place := lacking(report):
            raise InputError(
                f"{path} is not a complete report of this version of rin: it lacks {place}",
                hint="run rin retrieve again",
            )
        return report
