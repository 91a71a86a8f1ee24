"""The page in a browser, against a real server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page
from tests.support.browser import chromium, open_playground
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


def _is_fault(said: ConsoleMessage) -> bool:
    """A refusal of the server's is shown on the page, and the browser notes it in its console too."""
    return said.type == "error" and not said.text.startswith("Failed to load resource")


@pytest.fixture
def page(server: Server, browser: Browser) -> Iterator[Page]:
    """A fresh profile each time; what its console calls an error is one."""
    opened, errors = open_playground(browser, server.url), list[str]()
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.on("console", lambda said: errors.append(said.text) if _is_fault(said) else None)
    opened.locator(".preset").first.wait_for()
    yield opened
    opened.context.close()
    assert errors == []
