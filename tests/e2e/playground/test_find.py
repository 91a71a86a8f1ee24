"""Finding features on the page: by words, in a text, by contrast, by a wish, by cause."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Page, expect
from tests.support.browser import ANSWER_MS, answered, choose_bridge


@pytest.fixture
def finder(page: Page) -> Page:
    page.get_by_role("button", name="Find", exact=True).click()
    return page


def test_words_find_features_with_what_helps_to_choose_one(finder: Page) -> None:
    finder.get_by_label("Words to look for").fill("bridge")
    finder.get_by_text("Filters").click()
    finder.get_by_label("only what was found to steer").check()
    finder.get_by_role("button", name="Search").click()
    first = finder.locator(".hit").first
    expect(first).to_contain_text("The Golden Gate Bridge and San Francisco.")
    expect(first).to_contain_text("steers, 0.55 to 0.75")
    expect(first).to_contain_text("labelled by feature book")
    first.get_by_role("button", name=re.compile("^Steer with")).click()
    first.get_by_role("button", name="Go to Steer").click()
    expect(finder.locator(".edit")).to_contain_text("bundled/54")


def test_a_search_without_hits_says_so_and_pages_can_be_turned(finder: Page) -> None:
    finder.get_by_label("Words to look for").fill("")
    finder.get_by_role("button", name="Search").click()
    expect(finder.get_by_text("4096 found")).to_be_visible()
    first = finder.locator(".hit").first.inner_text()
    finder.get_by_role("button", name="More").click()
    expect(finder.locator(".hit").first).not_to_have_text(first)


def test_the_drawer_shows_labels_curve_examples_and_tries_a_text(finder: Page) -> None:
    finder.get_by_label("Words to look for").fill("golden gate bridge")
    finder.get_by_role("button", name="Search").click()
    finder.locator(".hit").first.get_by_role("button", name=re.compile("^About")).click()
    drawer = finder.get_by_role("dialog")
    expect(drawer.get_by_role("img", name=re.compile("^Dose curve"))).to_be_visible()
    expect(drawer).to_contain_text("What it promotes, and what it holds back")
    assert drawer.locator(".example").count() > 5
    drawer.get_by_label("Text to try").fill("A walk across the Golden Gate Bridge.")
    drawer.get_by_role("button", name="Try", exact=True).click()
    hot = drawer.locator("form + .example .token.heat-3, form ~ .example .token.heat-3").first
    expect(hot).to_have_text(" Gate")
    finder.keyboard.press("Escape")
    expect(drawer).to_have_count(0)


def test_a_pasted_text_has_a_map_and_each_token_its_features(finder: Page) -> None:
    finder.get_by_role("button", name="In a text").click()
    finder.get_by_label("Text to look into").fill("The Golden Gate Bridge in San Francisco is orange.")
    finder.get_by_role("button", name="Look", exact=True).click()
    finder.locator(".token.bare", has_text="in").first.click()
    expect(finder.locator(".card.spaced")).to_contain_text("bundled/54 golden-gate")
    finder.get_by_role("button", name="bundled/54 golden-gate").click()
    expect(finder.get_by_text(re.compile("^bundled/54, at most"))).to_be_visible()


def test_two_lists_are_told_apart_with_a_warning_where_they_are_few(finder: Page) -> None:
    finder.get_by_role("button", name="By contrast").click()
    finder.get_by_label("Texts with it, one a line").fill("Le chat dort.\nNous allons au marché.")
    finder.get_by_label("Texts without it, one a line").fill("The cat sleeps.\nWe go to the market.")
    finder.get_by_role("button", name="Compare", exact=True).click()
    finder.locator(".hit:visible").first.wait_for(timeout=ANSWER_MS)
    expect(finder.locator(".notice.warn")).to_contain_text("too few to tell")


def test_a_wish_shows_how_far_it_is_and_can_be_stopped(finder: Page) -> None:
    finder.get_by_role("button", name="By a wish").click()
    finder.get_by_label("What answers should do").fill("talk about the sea")
    finder.get_by_role("button", name="Try", exact=True).click()
    expect(finder.locator(".progress:visible")).to_contain_text(" of ", timeout=ANSWER_MS)
    finder.get_by_role("button", name="Stop", exact=True).click()
    expect(finder.locator(".progress:visible")).to_have_count(0)


def test_a_token_of_an_answer_is_traced_to_features(page: Page) -> None:
    choose_bridge(page)
    answered(page)
    page.locator(".column.default .token").nth(6).click()
    page.get_by_role("button", name="Which features caused it?").click()
    found = page.get_by_label("Causes of a token")
    found.locator(".hit").first.wait_for(timeout=ANSWER_MS)
    expect(found).to_contain_text("Causal for this context")
