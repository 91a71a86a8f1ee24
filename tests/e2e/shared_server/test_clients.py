"""openai-python, unmodified, and our own client against the running server."""

from __future__ import annotations

import asyncio

import openai
import pytest
from tests.support.bundled import GOLDEN_GATE, STRENGTH
from tests.support.serving import Server
from transformers import PreTrainedTokenizerBase

import saeclamp
from saeclamp import Add, AsyncClient, Clamp, Client, Readout, Steering
from saeclamp.types.token_text import pieces

MESSAGES = [{"role": "user", "content": "How can I sleep better?"}]
PARAMS = {"temperature": 0, "max_tokens": 24}
CLAMP = Clamp(feature="bundled/golden-gate", value=STRENGTH)
EXTRA = {**saeclamp.extra_body(CLAMP), "repetition_penalty": 1.1}


def test_openai_python_sync(server: Server) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        answer = client.chat.completions.create(model=server.model, messages=MESSAGES, extra_body=EXTRA, **PARAMS)
        assert "Golden Gate Bridge" in answer.choices[0].message.content
        assert answer.steering["applied"] is True
        text = client.completions.create(model=server.model, prompt="The sky is", extra_body=EXTRA, **PARAMS)
        assert text.steering["interventions"][0]["index"] == GOLDEN_GATE


def test_openai_python_streamed(server: Server) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        stream = client.chat.completions.create(
            model=server.model, messages=MESSAGES, extra_body=EXTRA, stream=True, **PARAMS
        )
        received = list(stream)
        assert "Golden Gate" in "".join(c.choices[0].delta.content or "" for c in received if c.choices)
        assert received[-1].steering["applied"] is True


def test_openai_python_async(server: Server) -> None:
    async def ask() -> tuple[str, dict[str, object]]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
            whole = await client.chat.completions.create(
                model=server.model, messages=MESSAGES, extra_body=EXTRA, **PARAMS
            )
            stream = await client.chat.completions.create(
                model=server.model, messages=MESSAGES, extra_body=EXTRA, stream=True, **PARAMS
            )
            received = [chunk async for chunk in stream]
            streamed = "".join(c.choices[0].delta.content or "" for c in received if c.choices)
            assert streamed == whole.choices[0].message.content
            return streamed, received[-1].steering

    text, receipt = asyncio.run(ask())
    assert "Golden Gate" in text
    assert receipt["applied"] is True


def test_openai_python_understands_a_refusal(server: Server) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        bad = saeclamp.extra_body(Clamp(feature="bundled/nobody", value=1))
        with pytest.raises(openai.BadRequestError) as raised:
            client.chat.completions.create(model=server.model, messages=MESSAGES, extra_body=bad)
        assert raised.value.param == "steering.interventions[0].feature"
        assert raised.value.code == "unknown_feature"
        assert raised.value.request_id


def test_our_client(server: Server) -> None:
    with Client(server.url) as client:
        assert client.health()
        assert server.model in client.models.list().ids
        plain = client.chat.completions.create(messages=MESSAGES, **PARAMS)
        steered = client.chat.completions.create(
            messages=MESSAGES, steering=[CLAMP, Add(feature="bundled/food", value=0.1)], **PARAMS
        )
        assert plain.steering is None
        assert steered.steering is not None
        assert [item.name for item in steered.steering.interventions] == ["golden-gate", "food"]
        assert steered.text != plain.text
        with client.chat.completions.create(messages=MESSAGES, steering=CLAMP, stream=True, **PARAMS) as stream:
            assert len(list(stream)) > 10
            assert stream.steering is not None
            assert stream.steering.applied
        text = client.completions.create(prompt="The sky is", steering=CLAMP, **PARAMS)
        assert text.steering is not None
        with pytest.raises(saeclamp.BadRequestError) as raised:
            client.completions.create(prompt="x", steering=Clamp(feature="nobody/1", value=1))
        assert (raised.value.status_code, raised.value.code) == (400, "unknown_sae")
        assert raised.value.request_id


def test_readings_carry_the_text_of_their_tokens(server: Server, tokenizer: PreTrainedTokenizerBase) -> None:
    look = Steering(readout=Readout(top_k=1, tokens="all"))
    with Client(server.url) as client:
        answer = client.completions.create(prompt="The bridge is", steering=look, temperature=0, max_tokens=6)
    shown = answer.choices[0].steering
    assert shown is not None
    tokens = [token for token in (*(shown.prompt_tokens or ()), *shown.tokens) if token is not None]
    assert [token.text for token in tokens] == [tokenizer.decode([token.token_id]) for token in tokens]
    assert "".join(str(token.text) for token in tokens) == " bridge is" + answer.text  # the first token is not read


def test_a_character_of_several_tokens_is_put_together_of_their_bytes(server: Server) -> None:
    look = Steering(readout=Readout(top_k=1, tokens="all"))
    with Client(server.url) as client:
        passage = "Wave 👋, 你好."
        inspected = client.features.inspect(passage, top_k=1).tokens
        shown = (
            client.completions.create(prompt=passage, steering=look, temperature=0, max_tokens=1).choices[0].steering
        )
    read = [token for token in shown.prompt_tokens or () if token is not None]
    for tokens in (inspected, read):
        assert sum("\ufffd" in (token.text or "") for token in tokens) >= 4
        texts = [piece.text for piece in pieces(tokens)]
        assert {" 👋", "你", "好"} <= set(texts)
        assert "".join(texts) in passage
    assert [token.bytes for token in read] == [token.bytes for token in inspected if token.position in range(1, 99)]


@pytest.mark.parametrize(("variant", "near"), [(":sae", ":sea"), (":gate", ":golden-gate")])
def test_a_near_variant_is_suggested(server: Server, variant: str, near: str) -> None:
    with Client(server.url) as client, pytest.raises(saeclamp.NotFoundError) as raised:
        client.completions.create(prompt="x", model=f"{server.model}{variant}", max_tokens=1)
    assert f"Did you mean '{server.model}{near}'?" in raised.value.message


def test_our_async_client(server: Server) -> None:
    async def ask() -> None:
        async with AsyncClient(server.url) as client:
            answers = await asyncio.gather(
                *(
                    client.chat.completions.create(messages=MESSAGES, steering=steering, **PARAMS)
                    for steering in (CLAMP, None, CLAMP)
                )
            )
            assert answers[0].text == answers[2].text != answers[1].text
            stream = await client.chat.completions.create(messages=MESSAGES, steering=CLAMP, stream=True, **PARAMS)
            async with stream:
                pieces = [chunk async for chunk in stream]
            assert len(pieces) > 10
            assert stream.steering is not None
            assert stream.text == answers[0].text

    asyncio.run(ask())
