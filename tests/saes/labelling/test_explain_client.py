"""An endpoint that fails in every way it can is asked again, and no sooner than it wishes."""

from __future__ import annotations

import asyncio
import itertools
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import httpx
import pytest
from tests.support.explain_endpoint import Failure, Rules, endpoint

from saeclamp_saes.labelling.explain.client import (
    LONGEST_ANSWER,
    EndpointError,
    ExplainClient,
    ExplainEndpoint,
    NoAnswerError,
    TokenUsage,
)
from saeclamp_saes.labelling.explain.prompts import AGAIN, EXPLAIN, EXPLANATION, explanation_in

QUESTION = '{"marks": ["<<", ">>"], "strong_examples": ["a << b>>"], "weaker_examples": []}'
ANSWER = "the word b"


def ask(url: str, **options: Any) -> tuple[str, TokenUsage]:
    async def run() -> tuple[str, TokenUsage]:
        async with httpx.AsyncClient(timeout=None) as http:
            asker = ExplainClient(ExplainEndpoint(url, "stub", **{"first_wait": 0.01, **options}), http)
            return await asker.ask(EXPLAIN, QUESTION, EXPLANATION, explanation_in), asker.usage

    return asyncio.run(run())


@pytest.mark.parametrize(
    "failure",
    [
        pytest.param(Failure(429, "{}"), id="too-many-requests"),
        pytest.param(Failure(500, "<html>oops</html>"), id="internal-error"),
        pytest.param(Failure(503, '{"error": "busy"}'), id="unavailable"),
        pytest.param(Failure(200, '{"choices": [{"mess'), id="broken-json"),
        pytest.param(Failure(200, "[]"), id="a-list"),
        pytest.param(Failure(200, '{"choices": []}'), id="no-choices"),
        pytest.param(Failure(200, '{"choices": [{"message": "hello"}]}'), id="no-message"),
        pytest.param(Failure(200, "[" * 100_000), id="deeply-nested"),
        pytest.param(Failure(delay=0.6), id="too-slow"),
        pytest.param(Failure(200, '{"choices": [{"message": {"content": null}}]}'), id="no-text"),
        pytest.param(Failure(content="Well, it is about b."), id="prose"),
        pytest.param(Failure(content='{"explanation": ["b"]}'), id="another-type"),
        pytest.param(Failure(content='{"explanation": " \\n"}'), id="blank"),
    ],
)
def test_after_a_failure_it_is_asked_again(failure: Failure) -> None:
    rules = Rules(failures=[failure, failure])
    with endpoint(rules) as url:
        said, _ = ask(url, timeout=0.3 if failure.delay else 60.0)
    assert said == ANSWER
    assert len(rules.seen) == 3


def test_a_dropped_connection_is_made_again() -> None:
    """The server says that more follows, and hangs up."""
    rules = Rules(failures=[Failure(200, "{", {"content-length": "1000", "connection": "close"})])
    with endpoint(rules) as url:
        assert ask(url)[0] == ANSWER
    assert len(rules.seen) == 2


def test_it_waits_as_many_seconds_as_it_is_told_to() -> None:
    rules = Rules(failures=[Failure(429, "{}", {"retry-after": "1.5"})])
    with endpoint(rules) as url:
        assert ask(url)[0] == ANSWER
    assert 1.5 <= rules.times[1] - rules.times[0] < 20


def test_it_waits_until_the_time_that_it_is_told() -> None:
    until = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=2)
    rules = Rules(failures=[Failure(503, "{}", {"retry-after": format_datetime(until, usegmt=True)})])
    with endpoint(rules) as url:
        assert ask(url)[0] == ANSWER
    assert datetime.now(UTC) >= until
    assert len(rules.seen) == 2


@pytest.mark.parametrize("value", ["soon", "", "nan", "Mon, 99 Foo 2026"])
def test_a_wait_that_is_none_is_its_own(value: str) -> None:
    rules = Rules(failures=[Failure(429, "{}", {"retry-after": value})])
    with endpoint(rules) as url:
        assert ask(url)[0] == ANSWER
    assert rules.times[1] - rules.times[0] < 10


def test_waits_double() -> None:
    rules = Rules(failures=[Failure(500, "{}")] * 4)
    with endpoint(rules) as url:
        assert ask(url, first_wait=0.05)[0] == ANSWER
    gaps = [after - before for before, after in itertools.pairwise(rules.times)]
    for gap, shortest in zip(gaps, (0.025, 0.05, 0.1, 0.2), strict=True):
        assert shortest <= gap


@pytest.mark.parametrize(
    ("rules", "options", "num_requests", "sentence"),
    [
        pytest.param(
            Rules(failures=[Failure(502, "bad\ngateway\x1b[31m")] * 9),
            {"retries": 2},
            3,
            "status 502, 'bad gateway [31m'",
            id="tries-used-up",
        ),
        pytest.param(
            Rules(failures=[Failure(delay=9)] * 9), {"retries": 0, "timeout": 0.1}, 1, "within 0.1 s", id="slow"
        ),
        pytest.param(
            Rules(failures=[Failure(429, "{}", {"retry-after": "9999"})]), {}, 1, "status 429", id="too-long-a-wait"
        ),
        pytest.param(
            Rules(failures=[Failure(400, '{"error": {"message": "too long"}}')]), {}, 1, "'too long'", id="bad-request"
        ),
        pytest.param(Rules(failures=[Failure(307, "", {"location": "/x"})]), {}, 1, "status 307", id="redirect"),
        pytest.param(
            Rules(failures=[Failure(content="no")] * 9), {}, 3, "not answer as asked, but with 'no'", id="prose"
        ),
        pytest.param(Rules(failures=[Failure(is_endless=True)]), {}, 1, "it sends more than 4 MiB", id="endless"),
        pytest.param(Rules(failures=[Failure(500, is_endless=True)]), {}, 1, "more than 4 MiB", id="endless-error"),
    ],
)
def test_what_is_not_answered_is_given_up(
    rules: Rules, options: dict[str, Any], num_requests: int, sentence: str
) -> None:
    with endpoint(rules) as url, pytest.raises(NoAnswerError) as given_up:
        ask(url, **options)
    assert sentence in str(given_up.value)
    assert len(rules.seen) == num_requests


def test_an_unusable_answer_is_shown_to_the_model_and_asked_for_again() -> None:
    rules = Rules(failures=[Failure(content="first"), Failure(content="second")])
    with endpoint(rules) as url:
        ask(url)
    _, second, third = ([(m["role"], m["content"]) for m in body["messages"]] for body in rules.seen)
    assert second == [("system", EXPLAIN), ("user", QUESTION), ("assistant", "first"), ("user", AGAIN)]
    assert third == [*second[:2], ("assistant", "second"), ("user", AGAIN)]


def test_of_a_long_answer_only_the_end_is_read() -> None:
    rules = Rules(failures=[Failure(content="x" * 200_000), Failure(content=f'{"x" * 200_000}{{"explanation": "b"}}')])
    with endpoint(rules) as url:
        assert ask(url)[0] == "b"
    assert len(rules.seen[1]["messages"][2]["content"]) == LONGEST_ANSWER


def test_half_a_character_in_an_answer_does_no_harm() -> None:
    rules = Rules(failures=[Failure(content="\ud800")])
    with endpoint(rules) as url:
        assert ask(url)[0] == ANSWER
    assert rules.seen[1]["messages"][2]["content"] == "\ud800"


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("http://127.0.0.1:99999/x", "is no address"),
        ("http://127.0.0.1:x", "is no address"),
        ("http://[::1", "is no address"),
        ("here", "is no address"),
        (f"http://{'a' * 70}.test", "cannot be reached"),
    ],
)
def test_an_address_that_is_none_is_said_in_a_sentence(url: str, sentence: str) -> None:
    with pytest.raises(EndpointError, match=sentence):
        ask(url)


def test_a_body_that_json_cannot_hold_is_said_in_a_sentence() -> None:
    with pytest.raises(EndpointError, match="cannot be sent as JSON"):
        ask("http://127.0.0.1:9", body={"temperature": float("nan")})


def test_answers_are_held_to_a_schema_where_that_is_wanted() -> None:
    rules = Rules()
    with endpoint(rules) as url:
        ask(url)
        ask(url, structured=True)
    plain, structured = rules.seen
    form = structured.pop("response_format")
    assert form["type"] == "json_schema"
    assert form["json_schema"]["schema"]["required"] == ["explanation"]
    assert plain == structured


def test_every_answer_is_paid_for() -> None:
    rules = Rules(failures=[Failure(content="no"), Failure(500)])
    with endpoint(rules) as url:
        assert ask(url)[1] == TokenUsage(requests=2, prompt_tokens=200, completion_tokens=14, uncounted=0)
    with endpoint(Rules(said_usage=False)) as url:
        assert ask(url)[1] == TokenUsage(requests=1, uncounted=1)


def test_the_key_is_sent_and_never_shown() -> None:
    with endpoint(Rules(key="sk-secret")) as url:
        assert ask(url, api_key="sk-secret")[0] == ANSWER
        assert "sk-secret" not in repr(ExplainEndpoint(url, "stub", "sk-secret"))
        with pytest.raises(EndpointError) as refused:
            ask(url, api_key="sk-other")
    assert "sk-" not in str(refused.value)


def test_the_key_goes_nowhere_else() -> None:
    """A redirect is not followed."""
    elsewhere = Rules()
    with endpoint(elsewhere) as other:
        rules = Rules(failures=[Failure(302, "", {"location": f"{other}/chat/completions"})])
        with endpoint(rules) as url, pytest.raises(NoAnswerError, match="status 302"):
            ask(url, api_key="sk-secret")
    assert elsewhere.seen == []
