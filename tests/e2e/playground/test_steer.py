"""The first screen: one click steers, and what was done is seen in the text."""

from __future__ import annotations

import base64
import json
import re

from playwright.sync_api import Browser, Page, expect
from tests.support.browser import ANSWER_MS, answered, choose_bridge, open_playground, set_sampling, text_of
from tests.support.serving import Server

BRIDGE = re.compile(r"golden|gate|bridge|francisco", re.IGNORECASE)


def test_the_root_of_the_server_shows_the_page(server: Server, browser: Browser) -> None:
    context = browser.new_context()
    page = context.new_page()
    page.goto(server.url)
    expect(page.get_by_role("heading", name="saeclamp")).to_be_visible()
    assert page.url == f"{server.url}/playground/"
    context.close()


def test_one_click_steers_beside_the_default_and_says_what_was_done(page_as_it_comes: Page) -> None:
    page = page_as_it_comes
    choose_bridge(page)
    answered(page, "default")
    answered(page)
    assert BRIDGE.search(text_of(page, "steered"))
    assert not BRIDGE.search(text_of(page, "default"))
    assert page.locator(".column.steered .token.edited").count() > 20
    assert page.locator(".column.default .token.edited").count() == 0
    assert page.locator(".column.steered .token[class*='heat-']:not(.heat-0)").count() > 5
    strip = page.locator(".column.steered .receipt")
    expect(strip).to_contain_text("tokens edited")
    strip.locator("summary").click()
    expect(strip).to_contain_text("The Golden Gate Bridge and San Francisco.")
    expect(strip).to_contain_text(re.compile(r"steering sha256:[0-9a-f]{64}"))
    expect(page.locator(".column.steered dl.cost")).to_contain_text("perplexity")


def test_a_token_shows_before_and_after_the_likeliest_tokens_and_the_divergence_by_keyboard_too(page: Page) -> None:
    choose_bridge(page)
    answered(page)
    page.locator(".column.steered .tokens").first.focus()
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    card = page.locator(".token-card")
    expect(card).to_contain_text("before any edit")
    expect(card).to_contain_text(re.compile(r"golden-gate: [\d.]+ → 162"))
    expect(card).to_contain_text("of the stream's length")
    expect(card).to_contain_text(re.compile(r"KL from unsteered: at least [\d.]+"))
    assert card.locator(".likely tr").count() == 6
    page.keyboard.press("Escape")
    expect(card).to_have_count(0)
    page.locator(".column.steered .token").nth(3).hover()
    expect(card).to_be_visible()


def test_a_change_is_pending_until_it_is_run(page: Page) -> None:
    choose_bridge(page)
    answered(page)
    expect(page.locator(".pending")).to_have_count(0)
    page.get_by_label(re.compile("^Strength of")).fill("0.3")
    expect(page.locator(".zone-words")).to_contain_text("tried, and too weak")
    expect(page.locator(".pending")).to_be_visible()
    before = text_of(page, "steered")
    page.get_by_role("button", name="Run it again").click()
    answered(page)
    expect(page.locator(".pending")).to_have_count(0)
    assert text_of(page, "steered") != before


def test_an_answer_can_be_stopped_and_run_again(page: Page) -> None:
    set_sampling(page, Tokens_of_an_answer=1500)
    choose_bridge(page)
    page.locator(".column.steered .token").nth(10).wait_for()
    page.get_by_role("button", name="Stop", exact=True).click()
    expect(page.locator(".column.steered")).to_contain_text("Stopped.")
    expect(page.locator(".column.steered .receipt")).to_have_count(0)
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    page.get_by_label("Tokens of an answer", exact=True).fill("8")
    page.keyboard.press("Tab")
    page.get_by_role("button", name="Regenerate").click()
    answered(page)
    assert page.locator(".column.steered .token").count() == 8


def test_the_token_that_ends_an_answer_is_no_part_of_its_text(page: Page) -> None:
    set_sampling(page, Temperature=0, Tokens_of_an_answer=300)
    page.get_by_label("Your question, for all columns").fill("Say hello in one word.")
    page.keyboard.press("Enter")
    answered(page, "default")
    expect(page.locator(".column.default")).not_to_contain_text("as many tokens as an answer may have")
    assert "im_end" not in text_of(page, "default")
    expect(page.get_by_role("button", name="Send")).to_be_visible(timeout=ANSWER_MS)
    page.get_by_label("Your question, for all columns").fill("And goodbye?")
    with page.expect_request("**/v1/chat/completions") as sent:
        page.keyboard.press("Enter")
    assert "im_end" not in str(sent.value.post_data)
    page.get_by_role("button", name="Stop", exact=True).click()


def test_columns_of_words_and_seeds_stand_side_by_side_and_the_talk_goes_on(page: Page) -> None:
    set_sampling(page, Tokens_of_an_answer=12, Answers_of_each_column=2)
    page.get_by_label("a column that is asked for it in words, to compare").check()
    page.get_by_label("What it is told").fill("Talk about the Golden Gate Bridge.")
    choose_bridge(page)
    for column in ("default", "steered", "prompted"):
        answered(page, column)
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    for column in ("default", "steered", "prompted"):
        assert page.locator(f".column.{column} .answer").count() == 2, column
    page.get_by_label("Your question, for all columns").fill("And then?")
    page.keyboard.press("Enter")
    page.locator(".turn").nth(1).wait_for()
    answered(page)
    assert page.locator(".turn").count() == 2


def test_the_same_settings_give_the_same_answer_in_another_profile(
    server: Server, browser: Browser, page: Page
) -> None:
    choose_bridge(page)
    answered(page)
    other = open_playground(browser, server.url, short=server.model)
    choose_bridge(other)
    answered(other)
    assert text_of(other, "steered") == text_of(page, "steered")
    other.context.close()


def test_a_feature_that_is_not_there_is_refused_with_its_place_and_no_answer(server: Server, page: Page) -> None:
    page.get_by_label("Feature or vector to add").fill("bundled/golden-gat")
    page.get_by_role("button", name="Add", exact=True).click()
    expect(page.get_by_text("This server has no feature bundled/golden-gat")).to_be_visible()
    # as from a link that was made for another server
    link = {"v": 1, "model": server.model, "edits": [{"feature": "bundled/golden-gat", "op": "clamp", "value": 1}]}
    page.goto(f"{server.url}/health")  # elsewhere, or the page would only hear that the fragment is another
    page.goto(f"{server.url}/playground/#{base64.urlsafe_b64encode(json.dumps(link).encode()).decode().rstrip('=')}")
    expect(page.locator(".edit")).to_contain_text("Did you mean")
    page.get_by_label("Your question, for all columns").fill("Hello")
    page.keyboard.press("Enter")
    banner = page.locator(".column.steered .notice.bad")
    expect(banner).to_contain_text("golden-gate")
    expect(page.locator(".column.steered .tokens")).to_have_count(0)


def test_words_that_are_no_feature_are_looked_for(page: Page) -> None:
    page.get_by_label("Feature or vector to add").fill("golden gate")
    page.get_by_role("button", name="Add", exact=True).click()
    expect(page.locator(".hit").first).to_contain_text("The Golden Gate Bridge and San Francisco.")


def test_a_reload_loses_nothing_but_the_answers(page: Page) -> None:
    choose_bridge(page)
    answered(page)
    page.get_by_label(re.compile("^Strength of")).fill("0.6")
    page.reload()
    expect(page.get_by_label("Value", exact=True)).to_have_value("0.6")
    expect(page.locator(".notice.info")).to_contain_text("How can I sleep better?")
