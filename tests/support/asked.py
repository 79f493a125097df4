"""A question to the tiny project, and how its report is read."""

import json

from tests.support.documents import ROOT

SCHEMA = json.loads((ROOT / "rapidin_cli/report/schema.json").read_text(encoding="utf-8"))
PROMPT, RESPONSE = "Where is the cat number 3?", "The cat number 3 walks."


def by_digest(report, number=0):
    return {example["digest"]: example for example in report["queries"][number]["examples"]}
