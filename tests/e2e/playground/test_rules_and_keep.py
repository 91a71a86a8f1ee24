"""Rules on the page, and what outlasts it: variants, code, links, files."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect
from tests.support.browser import (
    ANSWER_MS,
    SHORT_ANSWER,
    answered,
    choose_bridge,
    open_playground,
    playground,
    set_sampling,
    text_of,
)
from tests.support.serving import Server


def go_to(page: Page, view: str) -> None:
    page.get_by_role("navigation").get_by_role("button", name=view, exact=True).click()


def test_a_rule_is_tried_on_a_text_stops_an_answer_and_shows_where_it_held(page: Page) -> None:
    choose_bridge(page)
    answered(page)
    go_to(page, "Rules")
    page.get_by_role("button", name="Add a rule").click()
    expect(page.get_by_text("Unfinished: nothing is asked")).to_be_visible()
    page.get_by_label("Feature", exact=True).fill("bundled/golden-gate")
    page.get_by_label("Bound", exact=True).fill("0.3")
    page.keyboard.press("Tab")
    page.get_by_label("Text to try the rules on").fill("A walk across the Golden Gate Bridge.")
    page.get_by_role("button", name="Try", exact=True).click()
    expect(page.locator(".token.fired").first).to_have_text(" Gate")
    expect(page.get_by_text("Highest of bundled/golden-gate: “␣Gate”")).to_be_visible()
    go_to(page, "Steer")
    before = text_of(page, "steered")
    page.get_by_role("button", name="Run it again").click()
    answered(page)
    expect(page.locator(".column.steered")).to_contain_text("A rule ended the answer here.")
    expect(page.locator(".timeline")).to_contain_text("rule-1")
    assert before.startswith(text_of(page, "steered"))


def test_nothing_is_asked_while_a_rule_that_is_on_is_unfinished(page: Page) -> None:
    choose_bridge(page)
    answered(page)
    go_to(page, "Rules")
    page.get_by_role("button", name="Add a rule").click()
    page.get_by_label("Feature", exact=True).fill("bundled/golden-gate")
    page.get_by_role("button", name="Another condition").click()
    page.get_by_label("Feature", exact=True).last.fill("bundled/goldn-gate")
    page.keyboard.press("Tab")
    expect(page.get_by_text("not a feature of this server")).to_be_visible()
    go_to(page, "Steer")
    expect(page.get_by_text("rule-1 is on and names no feature of this server")).to_be_visible()
    page.get_by_label("Your question, for all columns").fill("And now?")
    page.get_by_role("button", name="Send").click()
    expect(page.locator(".turn")).to_have_count(1)
    expect(page.locator(".turn .answer[aria-busy=true]")).to_have_count(0)
    assert page.get_by_label("Your question, for all columns").input_value() == "And now?"
    go_to(page, "Keep")
    expect(page.get_by_text("What stands below is without it.")).to_be_visible()
    expect(page.get_by_role("button", name="Save what is set")).to_be_disabled()
    go_to(page, "Rules")
    page.get_by_label("on", exact=True).uncheck()
    go_to(page, "Steer")
    page.get_by_role("button", name="Send").click()
    expect(page.locator(".turn")).to_have_count(2)


def test_where_a_rule_held_is_counted_from_the_end_of_the_prompt_and_that_it_did_not_is_said(page: Page) -> None:
    go_to(page, "Rules")
    page.get_by_role("button", name="For example").click()
    page.get_by_label("Bound", exact=True).fill("-1")
    page.keyboard.press("Tab")
    page.get_by_role("button", name="Add a rule").click()
    page.get_by_label("Feature", exact=True).last.fill("bundled/sea")
    page.get_by_label("Bound", exact=True).last.fill("50")
    page.keyboard.press("Tab")
    go_to(page, "Steer")
    page.get_by_label("Your question, for all columns").fill("What is a bridge?")
    page.get_by_role("button", name="Send").click()
    steered = page.locator(".column.steered")
    expect(steered).to_contain_text("The answer is empty.", timeout=ANSWER_MS)
    expect(steered.locator(".timeline")).to_contain_text(
        "first at token 1 of the answer, which was not written any more"
    )
    expect(steered.locator(".timeline")).to_contain_text("rule-2 watched and never held")


def test_what_is_set_becomes_a_model_name_that_has_a_column_and_goes_again(server: Server, page: Page) -> None:
    choose_bridge(page)
    answered(page)
    go_to(page, "Keep")
    page.get_by_label("Name", exact=True).first.fill("my-bridge")
    page.get_by_label("What it is for").fill("A test.")
    page.get_by_role("button", name="Save what is set").click()
    model = f"{server.model}:my-bridge"
    expect(page.locator(".notice.info")).to_contain_text(model)
    asked = {"model": model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3}
    assert httpx.post(f"{server.url}/v1/chat/completions", json=asked, timeout=60).json()["steering"]["applied"] is True
    go_to(page, "Steer")
    page.get_by_text("Sampling and columns").click()
    page.get_by_label(model).check()
    page.get_by_role("button", name="Regenerate").click()
    answered(page, "variant")
    assert text_of(page, "variant") == text_of(page, "steered")
    go_to(page, "Keep")
    page.get_by_role("button", name="Delete my-bridge").click()
    page.get_by_role("button", name="Delete for good").click()
    expect(page.locator(".notice.info")).to_contain_text("is no more")


def test_a_name_that_cannot_be_is_refused_in_the_servers_words(page: Page) -> None:
    choose_bridge(page)
    go_to(page, "Keep")
    page.get_by_label("Name", exact=True).first.fill("a name with blanks")
    page.get_by_role("button", name="Save what is set").click()
    expect(page.locator(".notice.bad")).to_contain_text("a name is")


def test_the_code_that_is_shown_gives_the_answer_that_is_shown(server: Server, page: Page) -> None:
    choose_bridge(page)
    answered(page)
    shown = text_of(page, "steered")
    go_to(page, "Keep")
    page.get_by_role("button", name="curl", exact=True).click()
    code = page.get_by_role("region", name="The code").inner_text()
    body = json.loads(code.partition("-d '")[2].rstrip("'"))
    assert code.startswith(f"curl {server.url}/v1/chat/completions")
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=120).json()
    assert answer["choices"][0]["message"]["content"] == shown


@pytest.mark.parametrize("form", ["openai-python", "saeclamp", "JavaScript"])
def test_code_in_each_language_runs_and_prints_the_answer_whatever_the_question_holds(
    page: Page, tmp_path: Path, form: str
) -> None:
    page.get_by_label("Your question, for all columns").fill('It\'s "odd": \\n, ünïcode 🙂, $HOME and\u2028lines?')
    choose_bridge(page)
    answered(page)
    go_to(page, "Keep")
    page.get_by_role("button", name=form, exact=True).click()
    suffix, program = (".mjs", ["node"]) if form == "JavaScript" else (".py", [sys.executable])
    if form == "JavaScript" and shutil.which("node") is None:
        pytest.skip("needs Node")
    script = tmp_path / f"code{suffix}"
    script.write_text(page.get_by_role("region", name="The code").inner_text())
    said = subprocess.run([*program, str(script)], capture_output=True, text=True, timeout=120, check=False)
    assert said.returncode == 0, said.stderr
    go_to(page, "Steer")
    assert said.stdout.rstrip("\n") == text_of(page, "steered").rstrip("\n")


def test_a_link_gives_the_same_answer_in_a_fresh_profile_after_one_click(
    server: Server, browser: Browser, page: Page
) -> None:
    choose_bridge(page)
    answered(page)
    go_to(page, "Keep")
    link = page.get_by_label("Link", exact=True).input_value()
    other = open_playground(browser, server.url, fragment=f"#{link.partition('#')[2]}")
    expect(other.locator(".notice.info")).to_contain_text("How can I sleep better?")
    assert other.locator(".turn").count() == 0
    other.get_by_role("button", name="Run it").click()
    answered(other)
    go_to(page, "Steer")
    assert text_of(other, "steered") == text_of(page, "steered")
    expect(other.locator(".notice.warn")).to_have_count(0)
    other.context.close()


def test_a_link_of_another_sae_says_so(server: Server, browser: Browser, page: Page) -> None:
    choose_bridge(page)
    go_to(page, "Keep")
    link = page.get_by_label("Link", exact=True).input_value()
    changed = page.evaluate(
        """link => {
            const text = atob(new URL(link).hash.slice(1).replaceAll("-", "+").replaceAll("_", "/"));
            return btoa(text.replace(/sha256:[0-9a-f]{64}/, "sha256:" + "0".repeat(64)))
                .replaceAll("+", "-").replaceAll("/", "_").replace(/=+$/, "");
        }""",
        link,
    )
    other = open_playground(browser, server.url, fragment=f"#{changed}")
    expect(other.locator(".notice.warn")).to_contain_text("is not the one of the link")
    other.context.close()


def fragment_of(content: Any) -> str:
    return "#" + base64.urlsafe_b64encode(json.dumps(content).encode()).decode().rstrip("=")


EVIL = {
    "v": 1,
    "model": ["no text"],
    "saes": {"bundled": 3, "another": None},
    "edits": [1, None, {"op": "constructor", "value": 1e300}, {"feature": "../../metrics"}, {"feature": "bundled/54"}],
    "rules": [{"tests": []}, {"name": "a b", "tests": [{"feature": "../..", "unit": "resid_norm"}]}],
    "sampling": {"max_tokens": "many", "temperature": -5, "seed": 3.7},
    "focus": "nowhere/1",
    "questions": [7, "Hello?"],
}
ASKED = {"/v1/features", "/v1/models", "/v1/saes", "/v1/steering/validate", "/v1/variants", "/v1/vectors"}
"""Endpoints that the page asks by itself."""


@pytest.mark.parametrize("fragment", ["#%%%", "#e30", "#bnVsbA", fragment_of(EVIL)])
def test_a_link_that_is_damaged_or_evil_leaves_a_page_that_works(
    server: Server, browser: Browser, fragment: str
) -> None:
    asked: list[str] = []
    with playground(browser, server.url) as page:
        page.on("request", lambda request: asked.append(request.url.removeprefix(server.url).partition("?")[0]))
        page.goto(f"{server.url}/health")  # elsewhere, or the page would only hear that the fragment is another
        page.goto(f"{server.url}/playground/{fragment}")
        page.locator(".preset").first.wait_for()
        page.wait_for_timeout(1000)  # in which a link that starts something would have
        # a link fills in what is asked, and asks for no more than a feature that it names
        others = {path for path in asked if not path.startswith(("/playground/", "/health"))}
        assert others <= ASKED | {"/v1/features/bundled/54"}
        set_sampling(page, Tokens_of_an_answer=SHORT_ANSWER)
        choose_bridge(page)
        answered(page)


def test_rules_survive_a_link_and_a_variant_that_has_some_is_not_taken_over_in_part(
    server: Server, browser: Browser, page_as_it_comes: Page
) -> None:
    page = page_as_it_comes  # what is typed may be lost at the moment at which an answer ends
    choose_bridge(page)
    go_to(page, "Rules")
    page.get_by_role("button", name="Add a rule").click()
    page.get_by_label("Feature", exact=True).fill("bundled/golden-gate")
    page.keyboard.press("Tab")
    page.get_by_role(
        "button", name="Another condition"
    ).click()  # at once, as what is drawn may be older than what is set
    go_to(page, "Keep")
    code, link = (
        page.get_by_role("region", name="The code").inner_text(),
        page.get_by_label("Link", exact=True).input_value(),
    )
    assert '"all": [' in code
    page.get_by_label("Name", exact=True).first.fill("with-rules")
    page.get_by_role("button", name="Save what is set").click()
    expect(page.get_by_text("It has rules or tokens that cannot be set here")).to_be_visible()
    httpx.delete(f"{server.url}/v1/variants/with-rules", timeout=60).raise_for_status()
    with playground(browser, server.url, fragment=f"#{link.partition('#')[2]}") as other:
        other.locator(".notice.info").wait_for()
        go_to(other, "Keep")
        assert steering_of(other.get_by_role("region", name="The code").inner_text()) == steering_of(code)


def steering_of(code: str) -> Any:
    return json.loads(code.partition("-d '")[2].rstrip("'"))["steering"]


def test_the_transcript_has_every_receipt_and_lm_eval_gets_what_it_can_do(page: Page, tmp_path: Path) -> None:
    choose_bridge(page)
    answered(page)
    go_to(page, "Keep")
    with page.expect_download() as saved:
        page.get_by_role("button", name="Transcript with receipts").click()
    transcript = json.loads(Path(saved.value.path()).read_text())
    steered = next(one for one in transcript["turns"][0]["answers"] if one["column"] == "steered")
    assert steered["receipt"]["applied"] is True
    assert steered["request"]["steering"]["interventions"][0]["feature"] == "bundled/golden-gate"
    page.get_by_role("button", name="Steering for lm-eval").click()
    expect(page.locator(".notice.warn")).to_contain_text("lm-eval can only add")


def test_what_is_being_typed_stays_while_answers_come_in(page: Page) -> None:
    choose_bridge(page)
    go_to(page, "Rules")
    page.get_by_role("button", name="Add a rule").click()
    field, bound = page.get_by_label("Feature", exact=True), page.get_by_label("Bound", exact=True)
    field.press_sequentially("bundled/golden", delay=20)
    page.wait_for_function(
        "() => document.querySelector('[role=log]').textContent.includes('Steered')", timeout=ANSWER_MS
    )
    expect(field).to_have_value("bundled/golden")
    field.press_sequentially("-gate")
    bound.press_sequentially("7")
    page.keyboard.press("Tab")
    expect(field).to_have_value("bundled/golden-gate")
    expect(page.get_by_text("not a feature of this server")).to_have_count(0)
