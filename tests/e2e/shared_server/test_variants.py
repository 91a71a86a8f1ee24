"""Variants behind real endpoints: any client steers by the model's name alone."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest
from tests.support.bundled import ACT, GOLDEN_GATE, MAX_ACT
from tests.support.serving import Server

from saeclamp import BadRequestError, Clamp, Client, NotFoundError, Roles, Steering

QUESTION = [{"role": "user", "content": "What should I cook for dinner tonight?"}]
SAMPLING = {"temperature": 0, "max_tokens": 16}


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with Client(server.url) as client:
        yield client
        for variant in client.variants.list().data:
            if not variant.read_only:
                client.variants.delete(variant.name)


@pytest.fixture(scope="module")
def plain(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none")


def test_the_feature_books_variants_are_models_from_the_start(server: Server, plain: openai.OpenAI) -> None:
    models = {model.id: model for model in plain.models.list()}
    preset = models[f"{server.model}:golden-gate"]
    assert preset.model_extra is not None
    assert preset.model_extra["parent"] == server.model
    assert preset.model_extra["root"].startswith(f"{server.model}:golden-gate@")
    assert preset.owned_by == "feature-book"
    assert plain.models.retrieve(preset.id).id == preset.id


def test_a_models_name_alone_steers_as_the_variant_does(server: Server, client: Client, plain: openai.OpenAI) -> None:
    made = client.variants.create("bridge", Clamp(feature="bundled/golden-gate", value=ACT, unit="act"), alias="gate")
    assert {card.id: (card.parent, card.root) for card in plain.models.list()}["gate"] == (server.model, made.version)  # type: ignore[attr-defined]
    own = client.chat.completions.create(
        messages=QUESTION, steering=Clamp(feature=f"bundled/{GOLDEN_GATE}", value=ACT, unit="act"), **SAMPLING
    )
    for model in (made.id, made.version, "gate"):
        answer = plain.chat.completions.create(model=model, messages=QUESTION, **SAMPLING)  # type: ignore[call-overload]
        assert answer.choices[0].message.content == own.text
        assert answer.model == model
        assert answer.steering["applied"] is True
        assert answer.steering["variant"] == made.version
        streamed = [*plain.chat.completions.create(model=model, messages=QUESTION, stream=True, **SAMPLING)]  # type: ignore[call-overload]
        assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed if chunk.choices) == own.text
        assert {chunk.model for chunk in streamed} == {model}
        assert streamed[-1].steering["variant"] == made.version
    unsteered = plain.chat.completions.create(model=server.model, messages=QUESTION, **SAMPLING)  # type: ignore[call-overload]
    assert unsteered.choices[0].message.content != own.text
    text = plain.completions.create(model=made.id, prompt="The bridge", **SAMPLING)  # type: ignore[call-overload]
    assert (text.model, text.steering["variant"]) == (made.id, made.version)


def test_a_requests_own_steering_is_added_to_the_variants(client: Client) -> None:
    made = client.variants.create("bridge", Clamp(feature="bundled/golden-gate", value=0.5))
    answer = client.chat.completions.create(
        messages=QUESTION, model=made.id, steering=Clamp(feature="bundled/sea", value=0.5), **SAMPLING
    )
    assert answer.steering is not None
    assert [item.name for item in answer.steering.interventions] == ["sea", "golden-gate"]
    assert answer.steering.interventions[1].value_act == 0.5 * MAX_ACT
    with pytest.raises(BadRequestError) as refused:
        client.chat.completions.create(
            messages=QUESTION, model=made.id, steering=Clamp(feature=f"bundled/{GOLDEN_GATE}", value=1), **SAMPLING
        )
    assert refused.value.param == "model"
    assert made.id in str(refused.value)


def test_a_variant_can_choose_tokens_by_role(client: Client) -> None:
    steering = Steering(interventions=(Clamp(feature="bundled/golden-gate", value=0.5, tokens=Roles(roles=("user",))),))
    made = client.variants.create("listener", steering)
    answer = client.chat.completions.create(messages=QUESTION, model=made.id, **SAMPLING)
    assert answer.steering is not None
    (item,) = answer.steering.interventions
    assert item.tokens.generated == 0
    assert item.tokens.prompt > 0


def test_what_is_no_variant_is_never_answered_unsteered(server: Server, client: Client) -> None:
    for model in (f"{server.model}:golden-gat", f"{server.model}:golden-gate@000000000000", "golden-gate"):
        for path, body in (
            ("/v1/chat/completions", {"messages": QUESTION}),
            ("/v1/completions", {"prompt": "a"}),
            ("/v1/responses", {"input": "a"}),
            ("/v1/messages", {"messages": QUESTION, "max_tokens": 3}),
        ):
            response = server.http.post(path, json={"model": model, **body})
            assert response.status_code == 404, (path, response.text)
            assert f"{server.model}:golden-gate" in response.json()["error"]["message"]
    with pytest.raises(NotFoundError, match="Did you mean"):
        client.variants.get("golden-gat")


def test_variants_go_through_the_client_and_back(client: Client) -> None:
    first = client.variants.create("mine", Clamp(feature="bundled/sea", value=1), description="Salty.")
    second = client.variants.create("mine", Clamp(feature="bundled/sea", value=0.5))
    assert client.variants.get("mine").version == second.version
    assert client.variants.get(first.version.removeprefix(f"{first.base}:")).steering == first.steering
    assert second.id in client.variants.list().ids
    exported = client.variants.export()
    assert client.variants.delete("mine").num_versions == 2
    assert client.variants.import_(exported).num_new == 2
    assert client.variants.get("mine").version == second.version
    assert client.variants.get("mine").description == ""


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"name": "a b", "steering": {"readout": {"top_k": 1}}}, "name"),
        ({"name": "a", "steering": {"interventions": [{"op": "clmp"}]}}, "steering.interventions[0]"),
        ({"name": "a", "steering": {"interventions": [{"op": "ablate", "feature": "bundled/no"}]}},
         "steering.interventions[0].feature"),
        ({"name": "a"}, "steering"),
        ({"name": "a", "steering": {"readout": {"top_k": 1}}, "bas": "x"}, "bas"),
        ({"name": "golden-gate", "steering": {"readout": {"top_k": 1}}}, "name"),
    ],
)  # fmt: skip
def test_what_cannot_be_saved_is_refused_with_its_place(server: Server, body: object, param: str) -> None:
    response = server.http.post("/v1/variants", json=body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param), response.text
