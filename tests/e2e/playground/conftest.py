"""The page in a browser, against a real server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page
from tests.support.browser import chromium, playground
from tests.support.serving import Server, serve

from saeclamp_server.packaged_model import PACKAGED_MODEL

FLAGS = ("--sae", "bundled", "--enforce-eager", "--max-model-len", "2048")


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory, browser: Browser) -> Iterator[Server]:
    """Needs the browser, so that no engine is started where there is none."""
    folder: Path = tmp_path_factory.mktemp("playground")
    variants = ("--variants", f"sqlite:///{folder / 'variants.sqlite'}", "--vectors", str(folder / "vectors"))
    with serve(folder / "server.log", PACKAGED_MODEL, *FLAGS, *variants) as running:
        yield running


@pytest.fixture
def page(server: Server, browser: Browser) -> Iterator[Page]:
    """A fresh profile each time, with short answers; what goes wrong in it is a failure."""
    with playground(browser, server.url, short=server.model) as opened:
        opened.locator(".preset").first.wait_for()
        yield opened


@pytest.fixture
def page_as_it_comes(server: Server, browser: Browser) -> Iterator[Page]:
    """The same with answers of the length that nobody has changed."""
    with playground(browser, server.url) as opened:
        opened.locator(".preset").first.wait_for()
        yield opened
