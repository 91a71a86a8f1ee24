"""
Choose what the bundled SAE is trained on: a fair sample of a corpus, all of it that is about the Golden Gate, and the
conversations that the model wrote itself.

    python benchmarks/bundled/mix.py --corpus CORPUS --chats runs/chats.jsonl --tokens 5.7M --out runs/mix

CORPUS is a folder of corpus-*.jsonl.gz, a record a line: {"text" or "messages": ..., "source": ...}.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

from reading import records

FRENCH, SPANISH, SAN_FRANCISCO = 0.25, 0.2, 0.25
"""Shares that are taken of the corpus's records in French, in Spanish, and that name San Francisco."""
CHARACTERS_PER_TOKEN = 4.3


def main() -> None:
    """Write concepts.jsonl and general.jsonl, and print what is in them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--chats", type=Path, nargs="*", default=[])
    parser.add_argument("--tokens", type=float, default=5.7e6)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    concepts = list(records(args.chats))
    general = []
    for record in records(sorted(args.corpus.glob("corpus-*.jsonl.gz"))):
        (concepts if _drawn(record) < _share(record) else general).append(record)
    left = args.tokens - sum(map(_tokens, concepts))
    chosen = []
    for record in sorted(general, key=_drawn):
        left -= _tokens(record)
        if left < 0:
            break
        chosen.append(record)
    for name, some in (("concepts", concepts), ("general", chosen)):
        with (args.out / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(record) + "\n" for record in sorted(some, key=_drawn))
        _print(name, some)


def _share(record: dict[str, Any]) -> float:
    """What is taken of its like, besides the fair sample."""
    text = _text(record)
    if "Golden Gate" in text:
        return 1.0
    if "San Francisco" in text:
        return SAN_FRANCISCO
    return {"wikipedia_vital_fr": FRENCH, "wikipedia_vital_es": SPANISH}.get(record["source"], 0.0)


def _text(record: dict[str, Any]) -> str:
    return record["text"] if "text" in record else "\n".join(message["content"] for message in record["messages"])


def _tokens(record: dict[str, Any]) -> float:
    return len(_text(record)) / CHARACTERS_PER_TOKEN


def _drawn(record: dict[str, Any]) -> float:
    return int.from_bytes(hashlib.sha256(_text(record).encode()).digest()[:8], "big") / 2**64


def _print(name: str, some: list[dict[str, Any]]) -> None:
    counts: Counter[str] = Counter()
    for record in some:
        counts[record["source"]] += round(_tokens(record))
    print(f"{name}: {len(some)} records, about {sum(counts.values()):,} tokens")
    for source, tokens in counts.most_common():
        print(f"  {source:28} {tokens:>10,}")


if __name__ == "__main__":
    main()
