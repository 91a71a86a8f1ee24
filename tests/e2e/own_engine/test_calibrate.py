"""`saeclamp calibrate` on the packaged model and its bundled SAE, through a server that its own code starts."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
import yaml
from tests.support.bundled import GOLDEN_GATE
from transformers import AutoModelForCausalLM

from saeclamp_server.calibration.managed_server import managed_server
from saeclamp_server.cli.args import parse_args
from saeclamp_server.packaged_model import PACKAGED_MODEL

PROMPTS = [
    "How can I remember people's names?",
    "How does a bicycle stay upright?",
    "Describe the room you are in.",
    "Continue this story: The old clock on the wall stopped, and",
    "What should I do this weekend?",
    "Why is the sky blue?",
]
TOKENS = 24
FLAGS = ("--enforce-eager", "--max-model-len", "1024", "--kv-cache-memory-bytes", "1G")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with managed_server(PACKAGED_MODEL, "bundled", FLAGS) as running:
        yield running


@pytest.fixture(scope="module")
def out(url: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run with three strengths leaves behind."""
    folder = tmp_path_factory.mktemp("calibrated")
    (folder / "prompts.txt").write_text("\n".join(PROMPTS))
    assert calibrate(url, folder, "--strengths", "0.2,0.6,0.75", "--keep-answers") == 0
    return folder


def calibrate(url: str, folder: Path, *more: str) -> int:
    arguments = ["--features", "golden-gate", "--concept", "golden gate;san francisco", "--tokens", str(TOKENS)]
    where = ["--url", url, "--prompts", str(folder / "prompts.txt"), "--out", str(folder)]
    parsed = parse_args(["calibrate", "bundled", *arguments, *where, *more])
    assert isinstance(parsed, argparse.Namespace)
    status: int = parsed.run(parsed)
    return status


def curve_of(folder: Path) -> dict[str, Any]:
    curve: dict[str, Any] = json.loads((folder / "calibration.json").read_text())["features"][str(GOLDEN_GATE)]
    return curve


def test_hits_rise_with_the_strength_from_none(out: Path) -> None:
    curve = curve_of(out)
    points = [point["greedy"] for point in curve["curve"]]
    hits = [point["hit"][0] for point in points]
    assert curve["unsteered"]["greedy"]["hit"] == [0, 0, 0]
    assert hits[0] == 0
    assert 0 < hits[1] <= hits[2]
    assert hits[2] >= 0.5
    doses = [point["dose"] for point in points]
    assert doses == sorted(doses)
    assert doses[2] == pytest.approx(doses[1] * 0.75 / 0.6, rel=0.1)  # the edit's length goes with the clamp
    assert points[2]["similarity_gain"][0] > 0.05  # to the description: the Golden Gate Bridge and San Francisco
    assert points[2]["perplexity_ratio"][0] > points[0]["perplexity_ratio"][0]


def test_the_green_zone_is_in_the_feature_book(out: Path) -> None:
    curve = curve_of(out)
    low, high = curve["green_zone"]
    assert 0.6 <= low <= curve["best"] <= high <= 0.75
    (entry,) = [
        item for item in yaml.safe_load((out / "features.yaml").read_text())["features"] if item["index"] == GOLDEN_GATE
    ]
    assert (entry["name"], entry["clamp"], entry["best"]) == ("golden-gate", [low, high], curve["best"])
    assert entry["evidence"]["hit"] > 0


def test_perplexity_is_that_of_the_model_without_a_server(out: Path, url: str, model_folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32).eval()
    (kept,) = out.glob("calibration-answers-*.jsonl")
    answers = json.loads(kept.read_text().splitlines()[0])["answers"]["greedy"]
    nll, num_tokens = 0.0, 0
    for answer, prompt in zip(answers, PROMPTS, strict=True):
        told = httpx.post(
            f"{url}/v1/chat/completions",
            json={
                "messages": [{"role": "user", "content": prompt}],
                "temperature": 0,
                "repetition_penalty": 1.1,
                "max_tokens": TOKENS,
                "return_token_ids": True,
            },
            timeout=300,
        ).json()
        choice = told["choices"][0]
        assert choice["message"]["content"] == answer["text"]
        prompt_ids, ids = told["prompt_token_ids"], choice["token_ids"]
        assert answer["num_tokens"] == len(ids)
        with torch.inference_mode():
            logits = model(torch.tensor([[*prompt_ids, *ids]])).logits[0].double()
        for position, token in enumerate(ids, start=len(prompt_ids) - 1):
            nll -= float(logits[position].log_softmax(-1)[token])
        num_tokens += len(ids)
    expected = math.exp(nll / num_tokens)
    assert curve_of(out)["unsteered"]["greedy"]["perplexity"] == pytest.approx(expected, rel=0.02)


def test_sampled_answers_are_drawn_by_their_seeds(url: str, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text(PROMPTS[0])
    assert calibrate(url, tmp_path, "--strengths", "0.7", "--sampled", "3", "--keep-answers", "--no-similarity") == 0
    (kept,) = tmp_path.glob("calibration-answers-*.jsonl")
    for line in kept.read_text().splitlines():
        texts = [answer["text"] for answer in json.loads(line)["answers"]["sampled"]]
        assert len(set(texts)) == 3
    assert curve_of(tmp_path)["curve"][0]["sampled"]["num_answers"] == 3
