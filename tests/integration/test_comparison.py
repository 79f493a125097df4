"""Two results, or two queries, side by side."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser

from rapidin_cli.report.comparison import change, compare
from rapidin_cli.report.comparison_shown import page
from rapidin_cli.report.shrinking import redact_comparison
from tests.support import forked
from tests.support.browser import HOSTILE, make_report, opened


@pytest.fixture(scope="module")
def before() -> dict[str, Any]:
    return make_report()


@pytest.fixture(scope="module")
def after(before: dict[str, Any]) -> dict[str, Any]:
    """The best fell to the third place, the second is gone, the worst has changed its side."""
    report = copy.deepcopy(before)
    report["id"] = "ba9876543210"
    report["checkpoint"]["name"] = "checkpoint-500"
    [query] = report["queries"][:1]
    examples = query["examples"]
    examples[0]["score"] = (examples[2]["score"] + examples[3]["score"]) / 2
    del examples[1]
    examples[-1]["score"] = -examples[-1]["score"]
    examples.sort(key=lambda example: (-example["score"], example["digest"]))
    return report


def column(found: dict[str, Any], side: str) -> dict[str, dict[str, Any]]:
    return {line["digest"]: line for line in found["pairs"][0][side]}


def test_ranks_and_scores_are_those_of_both(before: dict[str, Any], after: dict[str, Any]) -> None:
    found = compare(before, after, "", "", top=5)
    assert found["scale"] == "score"
    for pair, name in zip(found["pairs"], ("q-hat", "q-plain"), strict=True):
        assert (pair["first"]["id"], pair["second"]["id"]) == (name, name)
    examples = before["queries"][0]["examples"]
    raised = column(found, "raised")
    first, second, worst = examples[0], examples[1], examples[-1]
    assert raised[first["digest"]]["first"]["rank"] == 1
    assert change(raised[first["digest"]], "raised").startswith("down")
    assert change(raised[second["digest"]], "raised") == "not kept"
    assert change(raised[worst["digest"]], "raised") == "was lowered"
    assert change(column(found, "lowered")[worst["digest"]], "lowered") == "now raised"
    for line in raised.values():
        known = {e["digest"]: e["score"] for e in examples}
        if line["first"] is not None:
            assert line["first"]["score"] == pytest.approx(known[line["digest"]])
    agree = found["pairs"][0]["agree"]["raised"]
    now = [e["digest"] for e in after["queries"][0]["examples"][:5]]
    both = sum(example["digest"] in now for example in examples[:5])
    assert agree == {"of": 5, "both": both}
    best = [min(p["rank"] for p in (line["first"], line["second"]) if p and p["side"] == "raised")
            for line in found["pairs"][0]["raised"]]  # fmt: skip
    assert best == sorted(best)


def test_a_result_is_equal_to_itself(before: dict[str, Any]) -> None:
    found = compare(before, before, "", "", top=5)
    for pair in found["pairs"]:
        for side in ("raised", "lowered"):
            assert {change(line, side) for line in pair[side]} <= {"="}


def test_different_scores_are_compared_in_deviations(
    before: dict[str, Any], after: dict[str, Any]
) -> None:
    other = copy.deepcopy(after)
    other["score"]["name"] = "dot"
    found = compare(before, other, "", "", top=3)
    assert "standard deviations" in found["scale"]
    query = before["queries"][0]
    line = column(found, "raised")[query["examples"][0]["digest"]]
    wanted = query["examples"][0]["score"] / query["distribution"]["std"]
    assert line["first"]["score"] == pytest.approx(wanted, rel=1e-5)


@pytest.fixture(scope="module")
def folder(
    before: dict[str, Any], after: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    root = tmp_path_factory.mktemp("comparison")
    (root / "rin.toml").write_text('[data]\nfiles = ["data/faq.jsonl"]\n')
    results = root / ".rin" / "results"
    results.mkdir(parents=True)
    for report in (before, after):
        (results / f"{report['id']}.json").write_text(json.dumps(report), encoding="ascii")
    return root


def test_two_results_are_compared_in_terminal_json_and_page(folder: Path, browser: Browser) -> None:
    chosen = ("report", "0123", "--against", "ba98", "--query", "q-hat")
    text = forked.rin(folder, *chosen)
    assert text.returncode == 0, text.stderr
    assert "checkpoint-500" in text.stdout
    assert "not kept" in text.stdout
    found = json.loads(forked.rin(folder, *chosen, "--json").stdout)
    assert found["schema"] == "rin.comparison/1"
    assert forked.rin(folder, *chosen, "--html", "both.html").returncode == 0
    with opened(browser, folder / "both.html", wait=False, bypass_csp=True) as seen:
        body = seen.page.locator("body").inner_text()
        assert "not kept" in body
        assert "⟨U+202E⟩" in body
        assert seen.page.locator("script, img").count() == 0
        violations = Axe().run(seen.page).response["violations"]
        assert [(v["id"], [n["html"][:80] for n in v["nodes"]]) for v in violations] == []
        seen.assert_quiet()


def test_two_queries_of_one_result_are_compared(folder: Path) -> None:
    done = forked.rin(
        folder, "report", "0123", "--query", "q-hat", "--against", ":q-plain", "--json"
    )
    [pair] = json.loads(done.stdout)["pairs"]
    assert (pair["first"]["id"], pair["second"]["id"]) == ("q-hat", "q-plain")
    wrong = forked.rin(folder, "report", "0123", "--query", "q-hat", "--against", ":q-none")
    assert wrong.returncode == 4
    assert "no query 'q-none'" in wrong.stderr


def test_nothing_in_common_is_said(folder: Path, before: dict[str, Any]) -> None:
    other = copy.deepcopy(before)
    other["id"] = "aaaaaaaaaaaa"
    for query in other["queries"]:
        query["response"] = "something else"
    path = folder / "other.json"
    path.write_text(json.dumps(other), encoding="ascii")
    done = forked.rin(folder, "report", "0123", "--against", str(path))
    assert done.returncode == 4
    assert "no query in common" in done.stderr
    assert "RESULT:ID" in done.stderr


def test_a_redacted_comparison_has_no_text(before: dict[str, Any], after: dict[str, Any]) -> None:
    found = redact_comparison(compare(before, after, "", "", top=5))
    text = page(found) + json.dumps(found)
    assert HOSTILE[:20] not in text
    assert "gloves" not in text
