"""The page for everybody: by keyboard alone, for screen readers, in light and dark, and with a long answer."""

from __future__ import annotations

import re

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect
from tests.support.browser import VIEWS, answered, choose_bridge, open_playground
from tests.support.serving import Server

SERIOUS = ("serious", "critical")


def faults(page: Page) -> list[str]:
    found = Axe().run(page).response["violations"]
    return [
        f"{one['id']}: {node['html'][:120]}: {node['failureSummary'][:300]}"
        for one in found
        if one["impact"] in SERIOUS
        for node in one["nodes"][:3]
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_view_has_serious_faults(server: Server, browser: Browser, scheme: str) -> None:
    page = open_playground(browser, server.url, short=server.model, color_scheme=scheme, bypass_csp=True)
    choose_bridge(page)
    answered(page)
    page.locator(".column.steered .receipt summary").click()
    page.get_by_text("Sampling and columns").click()
    for view in VIEWS:
        page.get_by_role("navigation").get_by_role("button", name=view, exact=True).click()
        if view == "Find":
            page.get_by_label("Words to look for").fill("sea")
            page.get_by_role("button", name="Search").click()
            page.locator(".hit").first.wait_for()
            page.locator(".hit").first.get_by_role("button", name=re.compile("^About")).click()
            page.get_by_role("img", name=re.compile("^Dose curve")).wait_for()
            assert faults(page) == [], f"drawer, {scheme}"
            page.keyboard.press("Escape")
        if view == "Rules":
            page.get_by_role("button", name="Add a rule").click()
        assert faults(page) == [], f"{view}, {scheme}"
    page.context.close()


def test_the_keyboard_alone_steers_and_reads_the_tokens(page: Page) -> None:
    def tab_to(words: str) -> None:
        for _ in range(60):
            page.keyboard.press("Tab")
            focused = page.evaluate("document.activeElement.innerText || document.activeElement.ariaLabel || ''")
            if words in focused:
                return
        pytest.fail(f"no way to {words!r} by keyboard")

    tab_to("golden-gate")
    page.keyboard.press("Enter")
    answered(page)
    assert page.get_by_role("log").filter(has_text="Steered:").count() == 1
    page.locator("#main").focus()
    for _ in range(80):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.classList.contains('tokens')"):
            break
    page.keyboard.press("End")
    expect(page.locator(".token-card")).to_be_visible()
    tab_to("Which features caused it?")
    page.keyboard.press("Enter")
    expect(page.get_by_label("Causes of a token")).to_be_visible()


def test_what_has_been_drawn_is_not_drawn_again_while_more_tokens_come_in(server: Server, browser: Browser) -> None:
    page = open_playground(browser, server.url)
    page.get_by_text("Sampling and columns").click()
    page.get_by_label("Tokens of an answer", exact=True).fill("400")
    page.keyboard.press("Tab")
    choose_bridge(page)
    page.locator(".column.steered .token").nth(70).wait_for(timeout=240_000)
    page.evaluate(
        """() => { window.changes = 0; new MutationObserver(records => { window.changes += records.length; }).observe(
            document.querySelector(".column.steered .tokens").firstElementChild,
            { subtree: true, childList: true, attributes: true, characterData: true }); }"""
    )
    page.locator(".column.steered .token").nth(100).wait_for(timeout=240_000)
    page.get_by_role("button", name="Stop", exact=True).click()
    assert page.evaluate("window.changes") == 0
    page.context.close()
