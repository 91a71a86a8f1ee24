"""
Which features of which SAEs make the model talk about a concept? What reads it is often not what writes it, so every
candidate is steered, through a server.

Candidates are the features that are more active in texts that mention the concept than in others. Each is clamped to
several multiples of its largest activations there (99.9th percentile) on the choosing questions of golden_gate.py, greedily.

    python benchmarks/bundled/scan.py a=runs/a/sae b=runs/b/sae --data runs/chats.jsonl
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from reading import encoded, open_reader, ranked, vectors

sys.path.append(str(Path(__file__).parents[1]))
from golden_gate import MENTIONS, NAMES_IT
from golden_gate_questions import CHOOSING

from saeclamp import AsyncClient
from saeclamp_saes import read_sae
from saeclamp_saes.cli.log_handler import set_up_log
from saeclamp_saes.library.resolve import SAEEntry, find_sae, open_entry
from saeclamp_saes.lm.documents import Document, data_files, documents
from saeclamp_server.calibration.client import GREEDY, AnswerClient, CalibrationDose
from saeclamp_server.calibration.managed_server import managed_server
from saeclamp_server.calibration.metrics import compare
from saeclamp_server.packaged_model import PACKAGED_MODEL

NUM_DOCUMENTS = 60
"""That mention the concept, and as many that do not."""
QUANTILE = 0.999


@dataclass(frozen=True)
class Candidate:
    """A feature that is active where the concept is."""

    index: int
    inside: float
    """Mean activation in texts that mention the concept"""
    outside: float
    max_act: float


def chosen_documents(data: Sequence[Path]) -> dict[bool, list[Document]]:
    """Take texts that mention the concept (True) and others (False)."""
    chosen: dict[bool, list[Document]] = {True: [], False: []}
    for document in documents(data_files(data)):
        some = chosen[MENTIONS.found_in(json.dumps([document.text, document.messages]))]
        if len(some) < NUM_DOCUMENTS:
            some.append(document)
    return chosen


def candidates(entry: SAEEntry, inside: torch.Tensor, outside: torch.Tensor) -> list[Candidate]:
    """
    Rank the features, those that read the concept most first.

    inside, outside: (n, width)
    """
    sae = read_sae(entry.path, entry.options)
    acts, others = encoded(sae, inside), encoded(sae, outside)
    mean, usual = acts.mean(dim=0), others.mean(dim=0)
    active = [index for index in ranked(mean, usual) if mean[index] > 0]
    return [
        Candidate(index, float(mean[index]), float(usual[index]), float(positive.quantile(QUANTILE)))
        for index in active
        if len(positive := acts[acts[:, index] > 0, index])
    ]


async def scan(url: str, entry: SAEEntry, found: Sequence[Candidate], strengths: Sequence[float], tokens: int) -> None:
    """Steer each candidate, and print what came of it, a line a strength."""
    async with AsyncClient(url) as client:
        asker = AnswerClient(client, tokens, plain=False, at_once=64, sae_sha256=entry.sha256)
        unsteered = (await asker.answers(CHOOSING, (GREEDY,), None))[GREEDY.name]
        for candidate in found:
            name = f"{entry.name}/{candidate.index}"
            activations = candidate.inside, candidate.outside, candidate.max_act
            print(name, *(f"{value:.2f}" for value in activations), sep="\t")
            for strength in strengths:
                dose = CalibrationDose(entry.name, candidate.index, strength * candidate.max_act)
                answers = (await asker.answers(CHOOSING, (GREEDY,), dose))[GREEDY.name]
                mentions, named = (compare(answers, unsteered, words, None) for words in (MENTIONS, NAMES_IT))
                figures = (mentions.hit, named.hit, mentions.perplexity_ratio, mentions.distinct_2_ratio)
                cells = (f"{figure.value:.2f}" if figure else "-" for figure in figures)
                print("", f"{strength:g}", *cells, repr(answers[0].text[:90]), sep="\t", flush=True)


def main() -> None:
    """Find the candidates, serve, and steer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("saes", nargs="+", metavar="SAE")
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="texts, of which some mention the concept")
    parser.add_argument("--most", type=int, default=8, help="candidates of each SAE")
    parser.add_argument("--features", type=lambda text: [int(part) for part in text.split(",")], help="only these")
    parser.add_argument("--strengths", type=lambda text: [float(part) for part in text.split(",")], default=[0.6, 0.9])
    parser.add_argument("--tokens", type=int, default=40)
    args = parser.parse_args()
    set_up_log()
    entries = [open_entry(find_sae(text)) for text in args.saes]
    sites = list(dict.fromkeys(entry.summary.reads[0] for entry in entries))
    reader = open_reader(sites)
    read = {mentions: vectors(reader, some) for mentions, some in chosen_documents(args.data).items()}
    chosen = []
    for entry in entries:
        at = sites.index(entry.summary.reads[0])
        found = candidates(entry, read[True][:, at], read[False][:, at])
        chosen.append([one for one in found if one.index in args.features] if args.features else found[: args.most])
    flags = ["--allow-unverified-sae", "--enforce-eager"]
    for text in args.saes[1:]:
        flags += ["--sae", text]
    with managed_server(PACKAGED_MODEL, args.saes[0], flags) as url:
        for entry, found in zip(entries, chosen, strict=True):
            asyncio.run(scan(url, entry, found, args.strengths, args.tokens))


if __name__ == "__main__":
    main()
