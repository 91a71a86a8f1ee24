"""The page where things are not as they should be: hostile texts, a busy server, a key, a server that goes and comes."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, Route, expect
from tests.support.browser import VIEWS, answered, choose_bridge, open_playground, playground, text_of
from tests.support.fleet_files import FleetFiles
from tests.support.serving import Server, serve, wait_for

HOSTILE = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>\u202egnirts\u2066"


def poisoned(value: Any) -> Any:
    """The same JSON with every text that people or models wrote replaced."""
    if isinstance(value, dict):
        return {
            key: HOSTILE
            if key in ("description", "text", "token", "content") and isinstance(one, str)
            else poisoned(one)
            for key, one in value.items()
        }
    return [poisoned(one) for one in value] if isinstance(value, list) else value


def poison(route: Route) -> None:
    response = route.fetch()
    text = response.text()
    if text.startswith("data: "):
        events = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
        body = "".join(
            f"data: {one if one == '[DONE]' else json.dumps(poisoned(json.loads(one)))}\n\n" for one in events
        )
        # the bytes are what tokens are shown by
        body = body.replace('"bytes": [', '"bytes_": [')
    else:
        body = json.dumps(poisoned(json.loads(text)))
    route.fulfill(response=response, body=body)


def test_labels_and_answers_full_of_markup_are_text(server: Server, browser: Browser) -> None:
    page = open_playground(browser, server.url, short=server.model)
    page.route(re.compile(r"/v1/(features|variants|chat)"), poison)
    page.reload()
    page.locator(".preset").first.click()
    answered(page)
    assert HOSTILE[:20] in page.locator(".preset").first.inner_text()
    assert HOSTILE[:20] in text_of(page, "steered")
    for view in VIEWS:
        page.get_by_role("navigation").get_by_role("button", name=view, exact=True).click()
        assert page.locator("img, script[src=''], script:not([src])").count() == 0
    assert page.title() == "saeclamp playground"
    page.context.close()


def test_a_busy_server_is_waited_for_as_long_as_it_says(server: Server, page: Page) -> None:
    refused: list[str] = []

    def busy(route: Route) -> None:
        if len(refused) < 2:
            refused.append(route.request.url)
            error = {"error": {"message": "busy", "type": "rate_limit_error", "code": "steering_busy", "param": None}}
            return route.fulfill(status=429, headers={"Retry-After": "2"}, json=error)
        route.continue_()

    page.route("**/v1/chat/completions", busy)
    choose_bridge(page)
    expect(page.locator(".notice.info").first).to_contain_text(re.compile(r"trying again in [12] s"))
    answered(page)
    assert len(refused) == 2


def test_an_answer_without_a_receipt_is_not_shown(server: Server, page: Page) -> None:
    def without(route: Route) -> None:
        response = route.fetch()
        route.fulfill(response=response, body=response.text().replace('"applied":true', '"applied":false'))

    page.route("**/v1/chat/completions", without)
    choose_bridge(page)
    banner = page.locator(".column.steered .notice.bad")
    expect(banner).to_contain_text("Not applied", timeout=60_000)
    expect(page.locator(".column.steered .tokens")).to_have_count(0)


def is_listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_a_server_with_a_key_asks_for_it_and_one_that_was_killed_is_found_again(
    browser: Browser, tmp_path: Path, model_folder: Path
) -> None:
    files = FleetFiles.made(tmp_path, model_folder)  # whose answers are of no interest here
    stores = ("--variants", f"sqlite:///{tmp_path / 'v.sqlite'}", "--vectors", str(tmp_path / "vectors"))
    flags = ("--sae", f"low={files.sae}", "--enforce-eager", "--max-model-len", "2048", *stores, "--api-key", "sk-1")
    with serve(tmp_path / "1.log", str(files.model), *flags) as server:
        page = open_playground(browser, server.url)
        page.get_by_label("API key").fill("sk-wrong")
        page.get_by_role("button", name="Go on").click()
        expect(page.get_by_text("is not one of the server's")).to_be_visible()
        page.get_by_label("API key").fill("sk-1")
        page.get_by_role("button", name="Go on").click()
        page.get_by_text("Sampling and columns").click()
        page.get_by_label("Tokens of an answer", exact=True).fill("1900")
        page.keyboard.press("Tab")
        page.locator(".preset").first.click()
        page.locator(".column.steered .token").nth(10).wait_for()
        port = int(server.url.rpartition(":")[2])
        os.kill(server.pid or 0, signal.SIGKILL)
        expect(page.locator(".column.steered .notice.bad")).to_contain_text("connection broke")
        expect(page.locator(".column.steered .tokens")).to_have_count(0)
    wait_for(lambda: not is_listening(port), 20, "what the server had started holds its port")
    with serve(tmp_path / "2.log", str(files.model), *flags, port=port):
        page.get_by_label("Tokens of an answer", exact=True).fill("8")
        page.keyboard.press("Tab")
        page.get_by_role("button", name="Run it again").click()
        answered(page)
        assert page.locator(".column.steered .token").count() == 8
        page.context.close()


@pytest.mark.parametrize("width", [360, 768, 1440])
def test_nothing_is_wider_than_the_window(server: Server, browser: Browser, width: int) -> None:
    page = open_playground(browser, server.url, short=server.model)
    page.set_viewport_size({"width": width, "height": 800})
    choose_bridge(page)
    answered(page)
    for view in VIEWS:
        page.get_by_role("navigation").get_by_role("button", name=view, exact=True).click()
        assert page.evaluate("document.documentElement.scrollWidth") <= width, view
    page.context.close()


def test_back_leads_to_the_view_before(page: Page) -> None:
    for view in ("Find", "Rules"):
        page.get_by_role("navigation").get_by_role("button", name=view, exact=True).click()
    page.go_back()
    expect(page.get_by_role("button", name="Find", exact=True)).to_have_attribute("aria-current", "page")
    page.go_back()
    expect(page.get_by_role("button", name="Steer", exact=True)).to_have_attribute("aria-current", "page")


def test_a_double_click_on_send_asks_and_a_question_that_was_stopped_at_once_is_given_back(page: Page) -> None:
    box = page.get_by_label("Your question, for all columns")
    box.fill("What is a bridge?")
    page.get_by_role("button", name="Send").dblclick()
    answered(page)
    box.fill("And a tower?")
    page.route("**/v1/chat/completions", lambda route: None)  # which never answers
    page.get_by_role("button", name="Send").click()
    page.wait_for_timeout(800)
    page.get_by_role("button", name="Stop").click()
    expect(box).to_have_value("And a tower?")
    expect(page.locator(".turn")).to_have_count(1)


def test_on_a_telephone_what_was_steered_is_what_is_seen_first(server: Server, browser: Browser) -> None:
    with playground(browser, server.url, viewport={"width": 390, "height": 780}) as page:
        page.locator(".preset").first.click()
        steered = page.locator(".column.steered")
        answered(page)
        expect(steered).to_be_in_viewport()
        places = [page.locator(f".column.{kind}").bounding_box() for kind in ("steered", "default")]
        assert [place is not None for place in places] == [True, True]
        assert places[0]["y"] < places[1]["y"]  # type: ignore[index]
