"""Whether a saved report has everything that this version shows."""

import json
from functools import cache
from importlib.resources import files
from typing import Any


@cache
def _schema() -> dict[str, Any]:
    text = (files("rapidin_cli.report") / "schema.json").read_text(encoding="utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema


def lacking(report: Any) -> str | None:
    """Return where a report lacks something that the schema requires, or None.

    Only names are checked: it is for reports of older versions and of a careless edit.
    """
    return _lacking(report, _schema(), "")


def _lacking(value: Any, schema: dict[str, Any], where: str) -> str | None:
    if "$ref" in schema:
        schema = _schema()["$defs"][schema["$ref"].rpartition("/")[2]]
    if "anyOf" in schema:
        if value is None:
            return None
        schema = schema["anyOf"][-1]
        return _lacking(value, schema, where)
    if schema.get("type") == "object":
        if not isinstance(value, dict):
            return where
        inner = schema.get("properties", {})
        for name in schema.get("required", ()):
            place = f"{where}.{name}" if where else name
            if name not in value:
                return place
            if found := _lacking(value[name], inner[name], place):
                return found
    if schema.get("type") == "array" and isinstance(schema.get("items"), dict):
        if not isinstance(value, list):
            return where
        items = schema["items"]
        if "$ref" in items or items.get("type") == "object":
            numbered = ((_lacking(each, items, f"{where}[{n}]")) for n, each in enumerate(value))
            return next((found for found in numbered if found), None)
    return None
