"""A real browser: Debian's Chromium, driven by Playwright."""

from __future__ import annotations

import base64
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright

from saeclamp_server.playground.pages import ROOT

NAMES = ("chromium", "chromium-browser", "google-chrome")
ARGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking")
VIEWS = ("Steer", "Find", "Rules", "Keep", "Server")
ANSWER_MS = 120_000
"""Milliseconds that an answer may take on a busy machine."""

SHORT_ANSWER = 16
"""Tokens of an answer of which a test needs no more than that there is one."""


@contextmanager
def chromium() -> Iterator[Browser]:
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip("needs a browser: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=[*ARGS])
        yield browser
        browser.close()


@contextmanager
def playground(
    browser: Browser, url: str, *, fragment: str = "", short: str | None = None, **context: object
) -> Iterator[Page]:
    """
    Open the page in a fresh profile, and close it. What it throws, or its console calls an error, fails the test.

    short: the server's model, for a page whose answers are short unless a link says otherwise
    """
    page, errors = _new_page(browser, short, **context), list[str]()
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda said: errors.append(said.text) if _is_fault(said) else None)
    page.goto(f"{url}{ROOT}{fragment}")
    yield page
    page.context.close()
    assert errors == [], errors


def _is_fault(said: ConsoleMessage) -> bool:
    """A refusal of the server's is shown on the page, and the browser notes it in its console too."""
    return said.type == "error" and not said.text.startswith("Failed to load resource")


def open_playground(
    browser: Browser, url: str, *, fragment: str = "", short: str | None = None, **context: object
) -> Page:
    """Open the page in a fresh profile, which the caller closes; see `playground`."""
    page = _new_page(browser, short, **context)
    page.goto(f"{url}{ROOT}{fragment}")
    return page


def _new_page(browser: Browser, short: str | None, **context: object) -> Page:
    made = browser.new_context(**{"viewport": {"width": 1440, "height": 900}, **context})  # type: ignore[arg-type]
    made.grant_permissions(["clipboard-read", "clipboard-write"])
    page = made.new_page()
    page.set_default_timeout(30_000)
    if short is not None:
        kept = {"v": 1, "model": short, "sampling": {"max_tokens": SHORT_ANSWER}}
        fragment = "#" + base64.urlsafe_b64encode(json.dumps(kept).encode()).decode().rstrip("=")
        page.add_init_script(f'sessionStorage["saeclamp-state"] ??= {json.dumps(fragment)}')
    return page


def answered(page: Page, column: str = "steered") -> None:
    """Wait until a column's last answer is complete, and its cost is known."""
    page.locator(f".turn:last-child .column.{column} .answer[aria-busy=false] dl.cost").first.wait_for(
        timeout=ANSWER_MS
    )


def text_of(page: Page, column: str) -> str:
    return page.locator(f".turn:last-child .column.{column} .tokens").first.inner_text()


def choose_bridge(page: Page) -> None:
    page.get_by_role("button", name=re.compile("^golden-gate")).click()


def set_sampling(page: Page, **values: float) -> None:
    page.get_by_text("Sampling and columns").click()
    for name, value in values.items():
        page.get_by_label(name.replace("_", " "), exact=True).fill(str(value))
    page.keyboard.press("Tab")
