"""What people do with the HTML report, in a real browser: search, compare, save, print, check."""

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page

from rapidin_cli.errors import InputError, UsageError
from rapidin_cli.report.shrinking import redact
from rapidin_cli.report.writing import publish
from tests.support.browser import (
    HOSTILE,
    digest_of,
    large_report,
    make_report,
    opened,
)


def saved(page: Page, button: str) -> str:
    with page.expect_download() as download:
        page.locator(button).click()
    return Path(download.value.path()).read_text(encoding="utf-8", errors="surrogatepass")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("script", [True, False])
def test_an_audit_of_accessibility_finds_nothing(
    browser: Browser, path: Path, tmp_path: Path, scheme: Any, script: bool
) -> None:
    if not script:  # as it is without JavaScript; the audit itself needs it
        page_text = re.sub(r"<script.*?</script>", "", path.read_text(encoding="utf-8"), flags=re.S)
        path = tmp_path / "plain.html"
        path.write_text(page_text, encoding="utf-8")
    # The page allows no other script, and the audit is one.
    with opened(browser, path, wait=script, color_scheme=scheme, bypass_csp=True) as seen:
        page = seen.page
        if script:
            page.locator("[data-token='7']").click()
            for number in (1, 2):
                page.locator(".card-head").nth(number).click()
                page.locator(".pin").nth(number).click()
            for table in page.locator("summary").all():
                if table.is_visible():
                    table.click()
        violations = Axe().run(page).response["violations"]
        assert [(v["id"], [n["html"][:90] for n in v["nodes"]]) for v in violations] == []


def test_examples_are_found_by_id_and_by_text(
    browser: Browser, path: Path, report: dict[str, Any]
) -> None:
    [query] = report["queries"][:1]
    with opened(browser, path) as seen:
        page = seen.page
        page.keyboard.press("/")
        page.keyboard.type("GLOVES")
        wanted = {e["digest"] for e in query["examples"] if "gloves" in e["prompt"]}
        shown = page.locator("#app .cards .card").evaluate_all(
            "all => all.map(c => c.dataset.digest)"
        )
        assert set(shown) == wanted
        assert f"{len(wanted)} with “GLOVES”" in page.locator("#status").inner_text()
        # Ranks stay those among all.
        best = next(n for n, e in enumerate(query["examples"], 1) if e["digest"] in wanted)
        assert page.locator("#raised .rank").first.inner_text() == str(best)
        page.reload()
        page.wait_for_selector("html[data-ready=yes]")
        assert page.locator("#find").input_value() == "GLOVES"
        page.locator("#find").focus()
        page.keyboard.press("Escape")
        assert page.locator("#raised .card").count() == 10
        page.locator("#find").fill("no such text")
        assert page.locator("#raised-none").inner_text() == "No example of this sign has that text."
        seen.assert_quiet()


def test_queries_are_found_and_ordered(browser: Browser, path: Path) -> None:
    with opened(browser, path) as seen:
        page = seen.page
        options = "all => all.map(option => option.value)"
        page.locator("#query-sort").select_option("strongest")
        assert page.locator("#query option").evaluate_all(options) == ["0", "1"]
        page.locator("#query-search").fill("q-plain")
        assert page.locator("#query option").evaluate_all(options) == ["1"]
        assert page.locator("#query-count").inner_text() == "1 of 2"
        assert "q=q-plain" in page.url
        seen.assert_quiet()


def test_two_examples_are_pinned_at_one_scale(
    browser: Browser, path: Path, report: dict[str, Any]
) -> None:
    examples = {e["digest"]: e for e in report["queries"][0]["examples"]}
    with opened(browser, path) as seen:
        page = seen.page
        page.locator("#raised .pin").nth(0).click()
        page.locator("#lowered .card-head").nth(0).focus()
        page.keyboard.press("p")
        first, second = (
            examples[page.locator(f"#{side} .card").nth(0).get_attribute("data-digest") or ""]
            for side in ("raised", "lowered")
        )
        pinned = page.locator("#pinned > .card")
        assert [
            first["id"] in pinned.nth(0).inner_text(),
            second["id"] in pinned.nth(1).inner_text(),
        ] == [True] * 2
        page.locator("#compare-table summary").click()
        page.locator("#compare-table tbody").wait_for()
        cells = page.locator("#compare-table tbody tr").nth(7).locator("td").all_inner_texts()
        difference = first["tokens"][7] - second["tokens"][7]
        assert cells[0] == "7"
        assert float(cells[4].replace("−", "-")) == pytest.approx(difference, rel=0.01)
        # One scale: equal influence has equal height in both.
        heights = page.locator("#pinned .mini").evaluate_all(
            "all => all.map(m => m.getAttribute('viewBox'))"
        )
        assert heights[0] == heights[1]
        page.reload()
        page.wait_for_selector("html[data-ready=yes]")
        assert page.locator("#pinned > .card").count() == 2
        page.locator("#raised .pin").nth(1).click()  # a third takes the place of the first
        assert second["id"] in page.locator("#pinned > .card").nth(0).inner_text()
        page.locator("#pinned button").first.click()
        page.locator("#pinned button").first.click()
        assert not page.locator("#compare").is_visible()
        seen.assert_quiet()


def test_what_is_shown_is_saved_as_csv_and_json(
    browser: Browser, path: Path, report: dict[str, Any]
) -> None:
    [query] = report["queries"][:1]
    with opened(browser, path, accept_downloads=True) as seen:
        page = seen.page
        page.locator("[data-token='2']").click()
        page.locator("[data-token='4']").click(modifiers=["Shift"])
        lines = list(csv.DictReader(io.StringIO(saved(page, "#save-csv"), newline="")))
        known = {e["digest"]: e for e in query["examples"]}
        assert {line["digest"] for line in lines} == set(known)
        for line in lines:
            score = sum(known[line["digest"]]["tokens"][2:5])
            assert float(line["score"]) == pytest.approx(score)
            assert (score > 0) == (line["side"] == "raised")
            assert float(line["total"]) == known[line["digest"]]["score"]
        found = json.loads(saved(page, "#save-json"))
        assert found["tokens"]["from"] == 2
        assert found["tokens"]["to"] == 4
        assert found["tokens"]["text"] == " you can return"
        for example in found["examples"]:
            assert example["tokens"] == known[example["digest"]]["tokens"]
            assert example["training"] == known[example["digest"]]["training"]
        assert any(example["response"] == HOSTILE for example in found["examples"])
        seen.assert_quiet()


def test_text_that_looks_like_a_formula_is_saved_as_text(browser: Browser, tmp_path: Path) -> None:
    report = make_report()
    report["queries"][0]["examples"][0]["response"] = '=HYPERLINK("http://x.invalid","a")'
    publish(report, tmp_path / "report.html")
    with opened(browser, tmp_path / "report.html", accept_downloads=True) as seen:
        text = saved(seen.page, "#save-csv")
    lines = list(csv.DictReader(io.StringIO(text, newline="")))
    assert lines[0]["response"] == "'" + report["queries"][0]["examples"][0]["response"]


def test_colours_are_turned_off_and_layers_and_strongest_tokens_are_listed(
    browser: Browser, path: Path
) -> None:
    with opened(browser, path, f"#e={digest_of('example 1')[:16]}") as seen:
        page = seen.page
        card = page.locator(f"[data-digest='{digest_of('example 1')}']")
        ground = "cell => getComputedStyle(cell).backgroundColor"
        heat = card.locator(".trained .heat .cell:not(.z0)").first
        before = heat.evaluate(ground)
        page.keyboard.press("h")
        assert heat.evaluate(ground) == "rgba(0, 0, 0, 0)"
        page.keyboard.press("h")
        assert heat.evaluate(ground) == before
        layers = card.locator(".layers tbody tr").all_inner_texts()
        assert layers[0].startswith("model.layers.1.self_attn.q_proj")
        assert "1 other layer" in layers[2]
        strongest = card.locator(".strongest tbody tr").count()
        assert strongest == 6
        seen.assert_quiet()


def test_every_chart_has_a_name_and_a_table(
    browser: Browser, path: Path, report: dict[str, Any]
) -> None:
    distribution = report["queries"][0]["distribution"]
    with opened(browser, path) as seen:
        page = seen.page
        for name, rows in (
            ("chart", len(distribution["counts"])),
            ("curve", len(distribution["ranks"])),
            ("token-chart", 10),
        ):
            drawn = page.locator(f"#{name} svg[role=img]")
            assert drawn.locator("title").count() == 1
            page.locator(f"#{name}-table summary").click()
            lines = page.locator(f"#{name}-table tbody tr")
            lines.last.wait_for()
            assert lines.count() == rows
        assert "the first 100 of 1,200 (8.3%) have half" in page.locator("#curve-text").inner_text()


def test_it_prints_on_paper_without_controls(browser: Browser, path: Path) -> None:
    with opened(browser, path, color_scheme="dark") as seen:
        page = seen.page
        page.emulate_media(media="print")
        for control in ("#save-csv", "#find", "#query", ".pin"):
            assert not page.locator(control).first.is_visible()
        assert page.locator("#raised .card").first.is_visible()
        ground = "getComputedStyle(document.body).backgroundColor"
        assert page.evaluate(ground) == "rgb(255, 255, 255)"
        pages = page.pdf().count(b"/Type /Page\n") or page.pdf().count(b"/Type /Page")
        assert pages >= 2


def test_forced_colours_keep_signs_and_the_chosen_token(browser: Browser, path: Path) -> None:
    with opened(browser, path, forced_colors="active", reduced_motion="reduce") as seen:
        page = seen.page
        page.locator("[data-token='7']").click()
        outline = "token => getComputedStyle(token).outlineStyle"
        assert page.locator("[data-token='7']").evaluate(outline) == "solid"
        line = "word => getComputedStyle(word).textDecorationStyle"
        styles = set(page.locator("#strip .word").evaluate_all(f"all => all.map({line})"))
        assert styles == {"solid", "dotted"}
        duration = "card => getComputedStyle(card).transitionDuration"
        assert page.locator(".card").first.evaluate(duration) in ("0s", "")


def test_a_snippet_shows_the_strongest_token(
    browser: Browser, path: Path, report: dict[str, Any]
) -> None:
    example = report["queries"][0]["examples"][0]
    strongest = max(example["training"], key=lambda pair: abs(pair[1]))[0]
    with opened(browser, path) as seen:
        card = seen.page.locator(f"[data-digest='{example['digest']}']")
        assert card.locator(".peak").text_content() == strongest


def test_redaction_leaves_no_word_of_the_data(
    browser: Browser, report: dict[str, Any], tmp_path: Path
) -> None:
    hidden = redact(report)
    for query in hidden["queries"]:
        query["words"] = {**query["words"], "matches": []}  # their ids are not ours
    text = json.dumps(hidden)
    for word in ("hat", "gloves", "ninety", "alert(", "sale"):
        assert word not in text.replace("q-hat", "")
    publish(hidden, tmp_path / "report.html")
    with opened(browser, tmp_path / "report.html") as seen:
        page = seen.page
        page.locator("[data-token='3']").click()
        page.locator(".card-head").first.click()
        body = page.locator("body").inner_text()
        assert "#3" in body
        assert "redacted" in body
        assert "gloves" not in body
        seen.assert_quiet()


def test_a_page_for_each_query_and_one_that_lists_them(
    browser: Browser, report: dict[str, Any], tmp_path: Path
) -> None:
    first = tmp_path / "report.html"
    done = publish(report, first, split=True)
    assert [p.name for p in done.paths] == ["report.html", "report-1.html", "report-2.html"]
    with opened(browser, first, wait=False, bypass_csp=True) as seen:
        assert Axe().run(seen.page).violations_count == 0
        seen.page.locator("a").nth(1).click()
        seen.page.wait_for_selector("html[data-ready=yes]")
        assert seen.page.url.endswith("report-2.html")
        seen.assert_quiet()
    first.unlink()
    with pytest.raises(InputError, match=r"report-1\.html already exists"):
        publish(report, first, split=True)
    assert not first.exists()


@pytest.fixture(scope="module")
def large() -> dict[str, Any]:
    return large_report(queries=100, kept=100, generated=64, learnt=256)


def test_a_hundred_queries_fit_ten_megabytes_and_are_ready_within_a_second(
    browser: Browser, large: dict[str, Any], tmp_path: Path
) -> None:
    target = tmp_path / "large.html"
    assert publish(large, target).size <= 10_000_000
    with opened(browser, target) as seen:
        page = seen.page
        ready = min(_ready(page) for _ in range(3))
        assert ready < 1000, f"ready {ready:.0f} ms after it was read"
        page.locator("[data-token='5']").click()
        page.keyboard.press("]")
        page.locator(".card-head").first.click()
        rounded = "rounded to 1/127"
        assert rounded in page.locator(".card.open .trained").inner_text()
        query = large["queries"][1]
        cell = page.locator(".card.open .trained .cell").nth(3).get_attribute("title") or ""
        top = max(abs(value) for _, value in query["examples"][0]["training"])
        shown = float(cell.split(": ")[1].replace("−", "-"))
        assert shown == pytest.approx(query["examples"][0]["training"][3][1], abs=top / 127)
        seen.assert_quiet()


def _ready(page: Page) -> float:
    """Milliseconds from when the file was read until the page can be used.

    The whole takes 0.7 s on two quiet cores; reading 10 MB is the browser's part of it.
    """
    page.reload()
    page.wait_for_selector("html[data-ready=yes]")
    read = "performance.getEntriesByType('navigation')[0].responseEnd"
    return float(page.evaluate(f"performance.getEntriesByName('ready')[0].startTime - {read}"))


def test_a_report_that_is_too_large_is_shrunk_split_or_refused(
    large: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = {**large, "queries": large["queries"][:10]}
    target = tmp_path / "report.html"
    done = publish(some, target, megabytes=0.3)
    assert done.size <= 300_000
    text = target.read_text(encoding="utf-8")
    assert "left out to make this file smaller: pairs of tokens, scores of training tokens" in text
    with pytest.raises(UsageError, match="cannot be made smaller"):
        publish(some, tmp_path / "tiny.html", megabytes=0.1)
    monkeypatch.setattr("rapidin_cli.report.writing.REFUSED_ABOVE", 500_000)
    with pytest.raises(UsageError, match="many browsers"):
        publish(some, tmp_path / "refused.html")
    assert not (tmp_path / "refused.html").exists()
    assert publish(some, tmp_path / "forced.html", force=True).size > 500_000
