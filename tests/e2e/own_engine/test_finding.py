"""Inspect, contrast and attribute return what was planted in a tiny model, with the oracle's numbers."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.oracles.reference import Move, ReferenceModel, ReferenceSAE
from tests.support.checkpoints import SPECIAL_IDS, make_model
from tests.support.serving import Server, serve, wait_until
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from saeclamp import BadRequestError, Clamp, Client, Progress, Steering

WORDS = [" sea", " ship", " harbour", " soup", " bread", " cheese", " the"]
"""Feature i is active on word i alone, and feature 6, on ` the`, has an empty decoder row: it does nothing."""
SEA, SHIP, HARBOUR, SOUP, BREAD, CHEESE, THE = range(7)
D_SAE = 32
TOLERANCE = 1e-3

AT_SEA = [
    f"Then {middle} the ship left the{end}" for middle in ("slowly", "again", "today") for end in (" sea", " bay")
]
AT_TABLE = [
    f"Then {middle} the cook ate the{end}" for middle in ("slowly", "again", "today") for end in (" soup", " bread")
]


class Planted(NamedTuple):
    client: Client
    server: Server
    oracle: ReferenceModel
    tokenizer: PreTrainedTokenizerBase

    def ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text)["input_ids"]
        return ids


def plant(folder: Path, model: Path, tokenizer: PreTrainedTokenizerBase) -> Path:
    """Write an SAE on the token embeddings, whose features are each active on one token."""
    embedding = load_file(model / "model.safetensors")["model.embed_tokens.weight"].float()
    tokens = [tokenizer(word)["input_ids"] for word in WORDS]
    assert all(len(ids) == 1 for ids in tokens)
    rows = embedding[[ids[0] for ids in tokens]]
    d_in = embedding.shape[1]
    torch.manual_seed(0)
    encoder, threshold = torch.zeros(d_in, D_SAE), torch.full((D_SAE,), 1e6)
    encoder[:, : len(WORDS)] = torch.nn.functional.normalize(rows, dim=1).T
    threshold[: len(WORDS)] = 0.9 * rows.norm(dim=1)
    own = embedding @ encoder[:, : len(WORDS)]
    assert ((own > threshold[: len(WORDS)]).sum(dim=0) == 1).all()
    decoder = torch.nn.functional.normalize(torch.randn(D_SAE, d_in), dim=1)
    decoder[THE] = 0
    folder.mkdir()
    save_file(
        {
            "W_enc": encoder,
            "b_enc": torch.zeros(D_SAE),
            "W_dec": decoder,
            "b_dec": torch.zeros(d_in),
            "threshold": threshold,
        },
        folder / "sae_weights.safetensors",
    )
    settings = {
        "architecture": "jumprelu",
        "d_in": d_in,
        "d_sae": D_SAE,
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "metadata": {"hook_name": "blocks.0.hook_resid_pre"},
    }
    (folder / "cfg.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Iterator[Planted]:
    folder = tmp_path_factory.mktemp("planted")
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    model = make_model(folder / "model", model_folder, "llama")
    sae = plant(folder / "sae", model, tokenizer)
    flags = ["--sae", f"planted={sae}", "--dtype", "float32", "--max-model-len", "2048", "--enforce-eager"]
    with serve(folder / "log", str(model), *flags, "--served-model-name", "tiny", name="tiny") as server:
        oracle = ReferenceModel(model, {"planted": ReferenceSAE(sae)}, SPECIAL_IDS)
        with Client(server.url) as client:
            yield Planted(client, server, oracle, tokenizer)


def test_inspection_shows_each_planted_feature_where_its_token_is(planted: Planted) -> None:
    text = "Then the ship left the sea with cheese and the ship"
    ids = planted.ids(text)
    acts = planted.oracle.forward(ids, len(ids), [], reads=["planted"]).acts["planted"]
    found = planted.client.features.inspect(text, top_k=4)
    assert [token.id for token in found.tokens] == ids
    assert "".join(token.text for token in found.tokens) == text
    assert not found.tokens[0].read
    for position, token in enumerate(found.tokens[1:], 1):
        expected = {index: float(acts[position, index]) for index in range(D_SAE) if acts[position, index] > 0}
        assert {one.index: one.act for one in token.top.get("planted", ())} == pytest.approx(expected, rel=1e-4)
    assert {one.index for one in found.features} == {SEA, SHIP, CHEESE, THE}
    (ship,) = (one for one in found.features if one.index == SHIP)
    assert (ship.max, ship.frequency) == (pytest.approx(float(acts[:, SHIP].max())), pytest.approx(2 / (len(ids) - 1)))
    assert ship.mean == pytest.approx(float(acts[1:, SHIP].mean()), rel=1e-4)
    assert found.tokens[ship.position or 0].text == " ship"
    assert found.num_counted == len(ids) - 1


def test_named_features_are_shown_active_or_not_and_in_order(planted: Planted) -> None:
    found = planted.client.features.inspect("Then the ship left", features=("planted/4", "planted/1"))
    assert [one.index for one in found.features] == [BREAD, SHIP]
    assert (found.features[0].max, found.features[0].position) == (0, None)
    assert [token.features.get("planted/1", 0) > 0 for token in found.tokens] == [
        token.text == " ship" for token in found.tokens
    ]
    assert all(token.top == {} for token in found.tokens)


def test_the_chat_templates_tokens_are_marked_and_do_not_count(planted: Planted) -> None:
    chat = [{"role": "user", "content": "Was the ship at sea?"}, {"role": "assistant", "content": "No, the soup."}]
    found = planted.client.features.inspect(chat)
    said = {role: "".join(token.text for token in found.tokens if token.role == role) for role in ("user", "assistant")}
    assert said == {"user": chat[0]["content"], "assistant": chat[1]["content"]}
    assert [token.template for token in found.tokens] == [token.role is None for token in found.tokens]
    counted = [token for token in found.tokens if token.read and not token.template]
    assert found.num_counted == len(counted)
    everything = planted.client.features.inspect(chat, include_template=True)
    assert everything.num_counted == sum(token.read for token in found.tokens) > found.num_counted


def test_contrast_finds_exactly_what_was_planted(planted: Planted) -> None:
    found = planted.client.features.contrast(AT_SEA, AT_TABLE)
    significant = [one for one in found.data if one.significant]
    # every text of one set has the ship, and none of the other; half have the sea or the soup, which six texts cannot show
    assert [one.index for one in significant] == [SHIP]
    assert (significant[0].effect, significant[0].negative) == (1, 0)
    assert significant[0].p == pytest.approx(2 / 924)  # exact: two of all deals of 12 texts to two equal sets
    assert {one.index for one in found.data} == {SEA, SHIP, SOUP, BREAD, THE}
    assert found.data[-1].index == THE
    assert {one.token for one in significant[0].examples} == {" ship"}
    assert found.warnings == ()
    (soup,) = (one for one in found.data if one.index == SOUP)
    assert soup.effect < 0
    assert soup.difference == pytest.approx(soup.positive - soup.negative)


def test_contrast_of_too_few_texts_says_so(planted: Planted) -> None:
    found = planted.client.features.contrast(AT_SEA[:2], AT_TABLE[:2])
    assert found.num_significant == 0
    assert "too few to tell" in found.warnings[0]
    assert "0.33" in found.warnings[0]


@pytest.mark.parametrize("against", [None, " bread"])
def test_attributed_changes_are_the_oracles(planted: Planted, against: str | None) -> None:
    text, target = "Then the ship left the sea with cheese", " harbour"
    ids = planted.ids(text)
    (target_id,), others = planted.ids(target), planted.ids(against) if against else []

    def value(moves: list[Move]) -> float:
        logprobs = planted.oracle.logprobs(ids, len(ids), moves)[-1]
        return float(logprobs[target_id] - (logprobs[others[0]] if others else 0))

    def ablated(*features: str) -> list[Move]:
        return [Move("planted", int(feature.split("/")[1]), "ablate", tokens="prompt") for feature in features]

    found = planted.client.features.attribute(text, target=target, **({"against": against} if against else {}))
    base = value([])
    assert found.value == pytest.approx(base, abs=TOLERANCE)
    assert (found.target.id, found.position) == (target_id, len(ids))
    assert {one.index for one in found.data} == {SHIP, SEA, CHEESE, THE}
    assert found.data[-1].index == THE
    assert found.data[-1].change == pytest.approx(0, abs=1e-5)
    for one in found.data:
        assert one.change == pytest.approx(value(ablated(one.feature)) - base, abs=TOLERANCE)
        scaled = [value([Move("planted", one.index, "scale", factor, "prompt")]) for factor in (0.875, 1.125)]
        assert one.predicted == pytest.approx((scaled[0] - scaled[1]) / 0.25, abs=10 * TOLERANCE)
    sizes = [abs(one.change) for one in found.data]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > 20 * TOLERANCE
    changes = {one.feature: one.change for one in found.data}
    for pair in found.pairs:
        assert pair.change == pytest.approx(value(ablated(*pair.features)) - base, abs=TOLERANCE)
        assert pair.interaction == pytest.approx(pair.change - sum(changes[one] for one in pair.features), abs=1e-6)
    assert len(found.pairs) == 6
    assert found.together.change == pytest.approx(value(ablated(*changes)) - base, abs=TOLERANCE)
    assert found.together.num_active == 4


def test_a_token_that_is_there_is_explained_by_what_is_before_it(planted: Planted) -> None:
    text = "Then the ship left the sea with cheese"
    ids = planted.ids(text)
    position = [token.text for token in planted.client.features.inspect(text).tokens].index(" sea")
    found = planted.client.features.attribute(text, position=position)
    assert (found.target.id, found.target.text) == (ids[position], " sea")
    assert {one.index for one in found.data} == {SHIP, THE}
    expected = float(planted.oracle.logprobs(ids, len(ids), [])[position - 1, ids[position]])
    assert found.value == pytest.approx(expected, abs=TOLERANCE)


def test_without_a_target_the_likeliest_token_is_explained(planted: Planted) -> None:
    text = "Then the ship left"
    ids = planted.ids(text)
    found = planted.client.features.attribute(text)
    assert found.target.id == int(planted.oracle.logprobs(ids, len(ids), [])[-1].argmax())


def test_only_so_many_features_are_tried_and_the_strongest_come_first(planted: Planted) -> None:
    found = planted.client.features.attribute("Then the ship left the sea with cheese", target=" soup", num_features=2)
    assert len(found.data) == 2
    assert found.together.num_active == 4
    assert found.together.num_features == 2


@pytest.mark.parametrize(
    ("path", "body", "param", "says"),
    [
        ("inspect", {"text": "a", "messages": []}, "messages", "empty"),
        ("inspect", {}, None, "one of 'text' and 'messages'"),
        ("inspect", {"text": "a", "top_kk": 3}, "top_kk", "Did you mean 'top_k'"),
        ("inspect", {"text": "a", "features": ["planted/99"]}, "features[0]", "0 to 31"),
        ("inspect", {"text": "a", "saes": ["other"]}, "saes[0]", "Loaded: planted"),
        ("inspect", {"text": "sea " * 3000}, "text", "2048"),
        ("inspect", {"text": "a", "aggregate": "median"}, "aggregate", "max"),
        ("contrast", {"positive": ["a"], "negative": []}, "negative", "empty"),
        ("contrast", {"positive": ["a", 3], "negative": ["b"]}, "positive[1]", "valid"),
        ("attribute", {"text": "a", "target": " harbour master"}, "target", "2 tokens"),
        ("attribute", {"text": "a", "target": 10**7}, "target", "ids end at"),
        ("attribute", {"text": "a b", "position": 7}, "position", "positions end at 1"),
        ("attribute", {"text": "a", "position": 1, "target": "b"}, None, "'position'"),
        ("neighbours", {"features": ["planted/x"]}, "features[0]", "no feature named"),
    ],
)
def test_bad_input_is_refused_with_its_place(
    planted: Planted, path: str, body: object, param: str | None, says: str
) -> None:
    response = planted.server.http.post(f"/v1/features/{path}", json=body)
    error = response.json()["error"]
    assert response.status_code == 400, error
    assert error["param"] == param, error
    assert says in error["message"], error


def test_neighbours_are_those_of_the_decoder(planted: Planted) -> None:
    decoder = torch.nn.functional.normalize(planted.oracle.saes["planted"].tensors["W_dec"], dim=1)
    (near,) = planted.client.features.neighbours("planted/3", limit=5).data
    cosines = decoder @ decoder[3]
    cosines[3] = -9
    expected = cosines.topk(5)
    assert [one.feature for one in near.neighbours] == [f"planted/{index}" for index in expected.indices.tolist()]
    assert [one.cosine for one in near.neighbours] == pytest.approx(expected.values.tolist(), abs=1e-5)


def test_the_client_says_what_the_server_refuses(planted: Planted) -> None:
    with pytest.raises(BadRequestError) as refused:
        planted.client.features.attribute("a", target=" harbour master")
    assert refused.value.param == "target"


CLAMP = Clamp(feature="planted/1", value=3, unit="act")
LONG = "Then the ship left the sea with cheese and the cook ate soup. " * 120
TAKES_LONG: dict[str, dict[str, Any]] = {
    "steering/compare": {
        "text": "Then the ship",
        "steering": Steering(interventions=(CLAMP,)).to_json(),
        "seeds": [*range(32)],
        "max_tokens": 2000,
        "temperature": 1,
    },
    "features/suggest": {"wish": "talk about the sea", "max_tokens": 200},
    "features/contrast": {"positive": [f"{n} {LONG}" for n in range(200)], "negative": [f"{n} {LONG}" for n in "ab"]},
    "features/attribute": {"text": LONG, "target": " sea", "num_pairs": 64},
}


@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
@pytest.mark.parametrize("path", TAKES_LONG)
def test_the_engine_stops_within_a_second_after_the_client_has_hung_up(
    planted: Planted, path: str, accept: str
) -> None:
    server = planted.server
    if path == "features/suggest":  # which needs embeddings
        assert wait_until(lambda: planted.client.features.search("sea").rankings[-1:] == ("meaning",), 120)
    assert wait_until(lambda: server.num_sequences() == 0, 10)
    with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2]))) as connection:
        body = json.dumps(TAKES_LONG[path]).encode()
        head = f"POST /v1/{path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nAccept: {accept}\r\n"
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        assert wait_until(lambda: server.num_sequences() > 0, 60)
    assert wait_until(lambda: server.num_sequences() == 0, 1.0)
    time.sleep(0.3)
    assert server.num_sequences() == 0  # nothing else is begun
    assert "saeclamp_features_in_use 0.0" in server.http.get("/metrics").text
    assert server.complete("Then the ship", [CLAMP.model_dump(mode="json")])["steering"]["applied"]


def test_progress_is_reported_and_the_answer_is_the_same(planted: Planted) -> None:
    heard: list[Progress] = []
    asked = {"seeds": (1, 2), "max_tokens": 400, "temperature": 1}
    compared = planted.client.steering.compare(CLAMP, "Then the ship", progress=heard.append, **asked)
    silent = planted.client.steering.compare(CLAMP, "Then the ship", **asked)
    assert [answer.text for answer in compared.steered] == [answer.text for answer in silent.steered]
    assert {(one.what, one.of) for one in heard} <= {
        ("answering", 1600),
        ("reading answers with the unsteered model", 4),
    }
    assert [one.done for one in heard if one.what == "answering"] == sorted(
        one.done for one in heard if one.what == "answering"
    )
    assert any(0 < one.done < 1600 for one in heard)


def test_what_is_refused_before_any_work_has_its_own_status_where_events_are_asked_for(planted: Planted) -> None:
    with pytest.raises(BadRequestError) as refused:
        planted.client.features.attribute("a", target=" harbour master", progress=lambda progress: None)
    assert refused.value.param == "target"
