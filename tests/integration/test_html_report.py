"""The HTML report, opened from disk in a real browser."""

import json
import math
import re
import stat
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from rapidin_cli.errors import InputError
from rapidin_cli.output.sanitise import visible
from rapidin_cli.output.templates import template_text
from rapidin_cli.report.html import render_html
from rapidin_cli.report.writing import publish
from tests.support.browser import HOSTILE, REPLY, digest_of, expected_order, opened, totals_order


def first_shown(page: Page) -> tuple[list[str], list[str]]:
    read = "cards => cards.map(card => card.dataset.digest)"
    return (
        page.locator("#raised > .card").evaluate_all(read),
        page.locator("#lowered > .card").evaluate_all(read),
    )


def shown_order(page: Page) -> tuple[list[str], list[str]]:
    for side in ("raised", "lowered"):
        if page.locator(f"#{side}-all").is_visible():
            page.locator(f"#{side}-all").click()
    return first_shown(page)


def test_opening_it_asks_for_nothing_and_complains_of_nothing(browser: Browser, path: Path) -> None:
    with opened(browser, path) as seen:
        page = seen.page
        page.locator("[data-token='7']").hover()
        page.locator("[data-token='7']").click()
        page.locator(".card-head").first.click()
        page.locator("#theme").click()
        assert page.locator("#chart svg rect").count() > 5
        seen.assert_quiet()
        assert len(seen.requests) == 1


@pytest.mark.parametrize("token", [0, 7, 9])
def test_a_click_on_a_token_ranks_both_columns_by_it(
    browser: Browser, path: Path, report: dict[str, Any], token: int
) -> None:
    with opened(browser, path) as seen:
        seen.page.locator(f"[data-token='{token}']").click()
        assert (
            "re-ranked among 34 kept of 1,200 scored" in seen.page.locator("#status").inner_text()
        )
        assert shown_order(seen.page) == expected_order(report["queries"][0], token, token)
        seen.assert_quiet()


def test_shift_click_adds_up_a_span_and_escape_returns(
    browser: Browser, path: Path, report: dict[str, Any]
) -> None:
    query = report["queries"][0]
    with opened(browser, path) as seen:
        assert shown_order(seen.page) == totals_order(query)
        seen.page.locator("[data-token='8']").click()
        seen.page.locator("[data-token='5']").click(modifiers=["Shift"])
        assert seen.page.locator(".token[aria-pressed=true]").count() == 4
        assert shown_order(seen.page) == expected_order(query, 5, 8)
        seen.page.keyboard.press("Escape")
        assert shown_order(seen.page) == totals_order(query)
        assert seen.page.locator(".token[aria-pressed=true]").inner_text() == "all tokens"


def test_ten_of_a_column_are_shown_until_all_are_asked_for(browser: Browser, path: Path) -> None:
    with opened(browser, path) as seen:
        assert seen.page.locator("#raised > .card").count() == 10
        seen.page.locator("#raised-all").click()
        assert seen.page.locator("#raised > .card").count() > 10
        held = "document.activeElement.closest('.card').querySelector('.rank').textContent"
        assert seen.page.evaluate(held) == "11"


def test_an_open_example_shows_which_of_its_tokens_did_it(
    browser: Browser, path: Path, report: dict[str, Any]
) -> None:
    with opened(browser, path) as seen:
        page = seen.page
        page.locator("#raised .card-head").nth(1).click()
        digest = page.locator(".card.open").get_attribute("data-digest")
        [example] = [e for e in report["queries"][0]["examples"] if e["digest"] == digest]
        cells = page.locator(".card.open .trained .cell")
        assert cells.count() == len(example["training"])
        _, score = example["training"][2]
        assert f"{abs(score):.3g}" in (cells.nth(2).get_attribute("title") or "")
        exactness = page.locator("#exactness").inner_text()
        assert "Scores of the kept examples are exact" in exactness
        assert "3 other examples may be among the best too" in exactness
        assert "4 of the top 10 raised" in page.locator("#words").inner_text()
        seen.assert_quiet()


def test_a_click_on_a_learnt_token_shows_the_generated_ones_that_it_moved(
    browser: Browser, path: Path, report: dict[str, Any]
) -> None:
    digest = digest_of("example 1")
    [example] = [e for e in report["queries"][0]["examples"] if e["digest"] == digest]
    with opened(browser, path, f"#e={digest[:16]}") as seen:
        page = seen.page
        card = page.locator(f"[data-digest='{digest}']")
        learnt, moved = card.locator(".trained .cell"), card.locator(".moved .cell")
        titles = "cells => cells.map(cell => cell.title)"
        whole = moved.evaluate_all(titles)
        learnt.nth(0).click()
        pairs = {t: value for t, s, value in example["cells"] if s == 0}
        assert pairs == {2: 0.004, 1: -0.002}
        for t, title in enumerate(moved.evaluate_all(titles)):
            assert {1: "−0.00200", 2: "+0.00400"}.get(t, "weaker than the pairs") in title
        assert "p4" in (moved.nth(2).get_attribute("class") or "")
        assert "n3" in (moved.nth(1).get_attribute("class") or "")
        assert "2 of 10 tokens" in card.locator("[role=status]").inner_text()
        page.keyboard.press("ArrowRight")
        page.keyboard.press("Enter")
        assert learnt.nth(1).get_attribute("aria-pressed") == "true"
        assert learnt.nth(0).get_attribute("aria-pressed") == "false"
        assert "0 of 10 tokens" in card.locator("[role=status]").inner_text()
        page.keyboard.press("Escape")
        assert moved.evaluate_all(titles) == whole
        assert card.locator(".trained [tabindex='0']").count() == 1
        seen.assert_quiet()


def test_a_link_to_a_token_and_an_example_survives_a_reload(browser: Browser, path: Path) -> None:
    with opened(browser, path) as seen:
        page = seen.page
        page.locator("[data-token='3']").click()
        page.locator("#lowered .card-head").nth(9).click()
        chosen = page.locator(".card.open").get_attribute("data-digest")
        assert chosen
        before, address = page.locator("#raised").inner_text(), page.url
        assert "t=3" in address
        assert f"e={chosen[:16]}" in address
        page.reload()
        page.wait_for_selector("html[data-ready=yes]")
        assert page.locator("#raised").inner_text() == before
        assert page.locator(".card.open").get_attribute("data-digest") == chosen
        assert page.url == address
    with opened(browser, path, "#q=nobody&t=999-2&e=zz.%00") as seen:
        assert seen.page.locator(".token[aria-pressed=true]").inner_text() == "all tokens"
        seen.assert_quiet()


def test_everything_can_be_reached_with_the_keyboard(
    browser: Browser, path: Path, report: dict[str, Any]
) -> None:
    query = report["queries"][0]
    with opened(browser, path) as seen:
        page, press = seen.page, seen.page.keyboard.press
        press("ArrowRight")
        for _ in range(3):
            press("ArrowRight")
        assert "Token 2" in page.locator("#preview").inner_text()
        assert first_shown(page)[0] == totals_order(query)[0][:10]
        press("Enter")
        assert first_shown(page)[0] == expected_order(query, 2, 2)[0][:10]
        press("ArrowRight")
        press("Shift+Enter")
        assert first_shown(page)[1] == expected_order(query, 2, 3)[1][:10]
        assert page.locator("#strip button[tabindex='0']").count() == 1
        press("j")
        press("j")
        press("k")
        press("Enter")
        assert page.locator(".card.open .rank").inner_text() == "1"
        press("?")
        assert page.locator("#help").is_visible()
        press("Escape")
        assert not page.locator("#help").is_visible()
        press("]")
        assert "No token scores" in page.locator("#preview").inner_text()
        press("[")
        assert page.locator("#strip button").count() == 1 + len(REPLY)
        seen.assert_quiet()


def test_without_javascript_the_totals_and_three_of_each_sign_are_there(
    browser: Browser, path: Path, report: dict[str, Any]
) -> None:
    with opened(browser, path, java_script_enabled=False) as seen:
        text = seen.page.locator("body").inner_text()
        assert not seen.page.locator("#app").is_visible()
        query = report["queries"][0]
        columns = [column for each in report["queries"] for column in totals_order(each)]
        kept = sum(min(3, len(column)) for column in columns)
        assert seen.page.locator("#static .card").count() == kept
        names = {example["digest"]: example["id"] for example in query["examples"]}
        for column in totals_order(query):
            assert all(names[digest] in text for digest in column[:3])
        assert "1,200 examples scored, 34 kept" in text
        assert "An estimate, not a retraining" in text
        assert report["provenance"]["command"] in seen.page.content()


def test_hostile_text_does_nothing_and_is_seen(browser: Browser, path: Path) -> None:
    digest = digest_of("example 0")
    with opened(browser, path, f"#e={digest[:16]}") as seen:
        page = seen.page
        card = page.locator(f"[data-digest='{digest}']")
        assert card.locator(".body .text").nth(1).text_content() == visible(HOSTILE)
        for mark in ("⟨U+202E⟩", "⟨U+2028⟩", "⟨U+0000⟩", "⟨U+001B⟩", "⟨U+D800⟩", "⟨U+E0041⟩"):
            assert mark in visible(HOSTILE)
        assert "\u200d" in visible(HOSTILE)
        assert page.locator("img").count() == 0
        assert page.locator("script").count() == 2
        assert page.locator("[style]").count() == 0
        seen.assert_quiet()
    with opened(browser, path, java_script_enabled=False) as seen:
        assert seen.page.locator("img").count() == 0
        assert "⟨U+202E⟩" in seen.page.locator(".warnings").first.inner_text()


def test_the_policy_stops_a_script_that_was_changed(
    browser: Browser, report: dict[str, Any], tmp_path: Path
) -> None:
    page = render_html(report).replace("const SHOWN = 10;", "const SHOWN = 11;")
    page = page.replace("<main", "<script>alert(3)</script><img src=http://x.invalid/a.png><main")
    changed = tmp_path / "changed.html"
    changed.write_text(page, encoding="utf-8")
    with opened(browser, changed, wait=False) as seen:
        assert seen.page.locator("#static").is_visible()
        assert sum("Content Security Policy" in text for text in seen.complaints) >= 3
        assert not any(text.startswith("dialog") for text in seen.complaints)


@pytest.mark.parametrize("script", [True, False])
def test_a_phone_needs_no_sideways_scrolling(browser: Browser, path: Path, script: bool) -> None:
    size: Any = {"width": 320, "height": 640}
    with opened(browser, path, viewport=size, java_script_enabled=script) as seen:
        if script:
            seen.page.locator(".card-head").first.click()
            seen.page.locator("summary", has_text="as a table").first.click()
        overflow = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert seen.page.evaluate(overflow) == 0


def test_the_same_report_gives_the_same_bytes(report: dict[str, Any]) -> None:
    shuffled = dict(reversed(list(report.items())))
    assert render_html(report) == render_html(json.loads(json.dumps(report)))
    assert render_html(report) == render_html(shuffled)
    assert re.search(r"<head>\n<meta http-equiv=\"Content-Security-Policy\"", render_html(report))
    assert not re.search(r"<[^>]* style=", render_html(report))


def test_a_number_that_is_none_is_refused(report: dict[str, Any]) -> None:
    broken = json.loads(json.dumps(report))
    broken["queries"][0]["examples"][3]["score"] = math.nan
    with pytest.raises(ValueError, match="not JSON compliant"):
        render_html(broken)


def test_a_file_is_private_and_never_overwritten_unasked(
    report: dict[str, Any], tmp_path: Path
) -> None:
    target = tmp_path / "report.html"
    assert publish(report, target).size == target.stat().st_size
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    with pytest.raises(InputError, match="already exists"):
        publish(report, target)
    target.write_text("old")
    publish(report, target, force=True)
    assert target.read_text(encoding="utf-8") == render_html(report)
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [1, 2])
def test_every_text_colour_has_contrast(theme: int) -> None:
    rule = r"--([\w-]+): light-dark\((#[0-9a-f]{6}), (#[0-9a-f]{6})\)"
    found = re.findall(rule, template_text("report.css"))
    colours = {match[0]: match[theme] for match in found}
    heat = [name for name in colours if name.startswith("heat-")]
    assert len(heat) == 9
    pairs = [("on-heat", name) for name in heat]
    for ink in ("ink", "muted", "plus", "minus"):
        pairs += [(ink, ground) for ground in ("ground", "panel", "sunk")]
    pairs += [("ink", "notice"), ("ink", "band"), ("muted", "notice")]
    for ink, ground in pairs:
        assert contrast(colours[ink], colours[ground]) >= 4.5, (ink, ground)
