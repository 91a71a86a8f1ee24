"""
The playground in a browser: pictures of each view for the documents, and what the page takes.

    python -m benchmarks.playground URL [--write]

Needs a running `make serve ARGS=--enforce-eager` at URL, and Chromium. Measured are the bytes of a first load; the time to
the first streamed token on the page, beside that of the same request sent from here; and the longest task of the browser
while 2,000 tokens come in with their heat.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import httpx
from benchmarks.machine import RESULTS, machine
from playwright.sync_api import Browser, Page
from tests.support.browser import answered, chromium, open_playground

IMAGES = Path(__file__).parents[1] / "docs" / "images"
NUM_TRIES = 5
NUM_TOKENS = 2000
TASK = "ThreadControllerImpl::RunTask"


def main() -> None:
    """Make pictures, measure, and write both where that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--write", action="store_true", help="keep the pictures and the figures")
    options = parser.parse_args()
    with chromium() as browser:
        if options.write:
            _pictures(browser, options.url)
        lines = [_first_load(browser, options.url), *_first_token(browser, options.url), _longest(browser, options.url)]
    text = "\n".join(["# The playground in a browser", "", machine(), "", *lines, ""])
    print(text)
    if options.write:
        (RESULTS / f"{time.strftime('%Y-%m-%d')}-playground.md").write_text(text)


def _view(page: Page, name: str) -> None:
    page.get_by_role("navigation").get_by_role("button", name=name, exact=True).click()


def _pictures(browser: Browser, url: str) -> None:
    IMAGES.mkdir(exist_ok=True)

    def save(page: Page, name: str) -> None:
        page.wait_for_timeout(400)
        page.screenshot(path=IMAGES / f"{name}.png")

    page = open_playground(browser, url)
    page.locator(".preset").first.click()
    answered(page)
    answered(page, "default")
    page.locator(".column.steered .token").nth(14).hover()
    save(page, "steer")
    page.mouse.move(2, 2)
    _view(page, "Find")
    page.get_by_label("Words to look for").fill("bridge")
    page.get_by_role("button", name="Search").click()
    page.locator(".hit").first.wait_for()
    save(page, "find")
    page.locator(".hit").first.get_by_role("button", name="About").click()
    page.locator(".curve svg").wait_for()
    save(page, "feature")
    page.keyboard.press("Escape")
    _view(page, "Rules")
    page.get_by_role("button", name="Add a rule").click()
    page.get_by_label("Feature", exact=True).fill("bundled/golden-gate")
    page.get_by_label("Bound", exact=True).fill("0.3")
    page.get_by_label("Text to try the rules on").fill("A walk across the Golden Gate Bridge, and a cup of coffee.")
    page.get_by_role("button", name="Try", exact=True).click()
    page.locator(".token.fired").first.wait_for()
    save(page, "rules")
    _view(page, "Keep")
    save(page, "keep")
    _view(page, "Server")
    save(page, "server")
    page.context.close()
    phone = open_playground(browser, url, color_scheme="dark")
    phone.set_viewport_size({"width": 360, "height": 800})
    phone.locator(".preset").first.click()
    answered(phone)
    phone.locator(".column.steered").scroll_into_view_if_needed()
    save(phone, "phone-dark")
    phone.context.close()


def _first_load(browser: Browser, url: str) -> str:
    page = browser.new_context().new_page()
    sizes: list[int] = []
    page.on("requestfinished", lambda request: sizes.append(request.sizes()["responseBodySize"]))
    page.goto(f"{url}/playground/")
    page.locator(".preset").first.wait_for()
    page.context.close()
    return (
        f"* First load: {sum(sizes) / 1000:.0f} kB in {len(sizes)} answers, what the server says of itself among them."
    )


def _first_token(browser: Browser, url: str) -> list[str]:
    """Milliseconds to the first token, side by side: the page's own measure, and the same request from here."""
    page = open_playground(browser, url)
    page.get_by_text("Sampling and columns").click()
    page.get_by_label("Tokens of an answer", exact=True).fill("8")
    page.keyboard.press("Tab")
    bodies: list[dict[str, Any]] = []
    page.on("request", lambda request: _note(request, bodies))
    page.locator(".preset").first.click()
    answered(page)
    steered = next(body for body in bodies if "interventions" in body["steering"])
    on_page, alone = [], []
    for _ in range(NUM_TRIES):
        on_page.append(page.evaluate(FIRST_TOKEN, [url, steered]))
        start = time.monotonic()
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=steered, timeout=60) as response:
            next(line for line in response.iter_lines() if '"content":' in line and '"logprobs":{' in line)
            alone.append(1000 * (time.monotonic() - start))
    page.context.close()
    shown = (statistics.median(on_page), statistics.median(alone))
    return [
        f"* First token, median of {NUM_TRIES} in turn: {shown[0]:.0f} ms in the browser, {shown[1]:.0f} ms without one."
    ]


FIRST_TOKEN = """async ([url, body]) => {
    const { events } = await import(`${url}/playground/app/api.js`);
    const start = performance.now();
    for await (const chunk of events("v1/chat/completions", body, new AbortController().signal)) {
        if (chunk.choices?.[0]?.logprobs) return performance.now() - start;
    }
}"""


def _note(request: Any, bodies: list[dict[str, Any]]) -> None:
    if request.url.endswith("/v1/chat/completions"):
        bodies.append(json.loads(request.post_data))


def _longest(browser: Browser, url: str) -> str:
    page = open_playground(browser, url)
    page.locator(".preset").first.wait_for()
    page.get_by_text("Sampling and columns").click()
    page.get_by_label("Tokens of an answer", exact=True).fill(str(NUM_TOKENS))
    page.keyboard.press("Tab")
    browser.start_tracing(page=page, categories=["toplevel"])
    page.locator(".preset").first.click()
    page.get_by_role("button", name="Send").wait_for(timeout=900_000)
    shown = page.locator(".column.steered .token").count()
    page.locator(".column.steered .tokens").first.focus()
    for _ in range(50):
        page.keyboard.press("ArrowRight")
    computed, lasted = _longest_tasks(json.loads(browser.stop_tracing())["traceEvents"])
    page.context.close()
    return (
        f"* While {shown} tokens came in beside as many of the default column, and 50 were gone through, the browser's "
        f"longest task computed for {computed:.0f} ms. On the clock the longest took {lasted:.0f} ms: the engine's threads, "
        "which wait by spinning, had both cores, and the browser waited for one."
    )


def _longest_tasks(events: list[dict[str, Any]]) -> tuple[float, float]:
    """Find the longest tasks of a page's main thread: milliseconds on a core, and on the clock."""
    threads = {
        (event["pid"], event["tid"])
        for event in events
        if event["name"] == "thread_name" and event["args"]["name"] == "CrRendererMain"
    }
    tasks = [event for event in events if event["name"] == TASK and (event["pid"], event["tid"]) in threads]
    return max(task.get("tdur", 0) for task in tasks) / 1000, max(task.get("dur", 0) for task in tasks) / 1000


if __name__ == "__main__":
    main()
