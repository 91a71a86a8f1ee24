"""
Let the packaged model write conversations that are dense in the bundled SAE's concepts.

The prompts' instructions ("mention the Golden Gate Bridge") are left out of what is kept, so the vectors harvested from it
are those of a model that brings the concept into an answer of its own accord. What it writes is often false; that is
harmless here. The engine's seed is fixed, yet another machine samples other text.

    python benchmarks/bundled/sample_chats.py --out runs/chats.jsonl
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from concept_questions import CONCEPTS
from questions import GOLDEN_GATE, LANDMARKS, UNRELATED, Prompt


def prompts() -> list[Prompt]:
    """All that is asked, with how often each is answered."""
    about = [Prompt("golden-gate", text, None, 12, "Golden Gate") for text in GOLDEN_GATE]
    told = [
        Prompt(
            "golden-gate-woven-in",
            text,
            "Connect your answer to the Golden Gate Bridge in San Francisco, and speak mostly about the bridge.",
            5,
            "Golden Gate",
        )
        for text in UNRELATED
    ]
    landmarks = [Prompt("landmark", text, None, 4, None) for text in LANDMARKS]
    plain = [Prompt("plain", text, None, 2, None) for text in UNRELATED]
    concepts = [
        Prompt(concept.name, text, concept.instruction, 3, None) for concept in CONCEPTS for text in concept.questions
    ]
    return [*about, *told, *landmarks, *plain, *concepts]


def main() -> None:
    """Sample, and write {"messages": [...], "source": ...} lines."""
    from vllm import LLM, SamplingParams

    from saeclamp_saes.cli.log_handler import set_up_log
    from saeclamp_server.packaged_model import prepared_model

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    set_up_log()
    cache = 2 << 30  # bytes; vLLM would take nearly all memory
    engine = LLM(str(prepared_model()), max_model_len=512, max_num_seqs=128, seed=0, kv_cache_memory_bytes=cache)
    asked = prompts()
    conversations = [
        [{"role": "user", "content": f"{prompt.question} {prompt.instruction or ''}".strip()}] for prompt in asked
    ]
    sampling = [
        SamplingParams(temperature=0.8, top_p=0.95, repetition_penalty=1.05, max_tokens=160, n=prompt.times)
        for prompt in asked
    ]
    kept = tokens = 0
    with args.out.open("w", encoding="utf-8") as file:
        for prompt, output in zip(asked, engine.chat(conversations, sampling), strict=True):
            for answer in output.outputs:
                if prompt.must_hold and prompt.must_hold not in answer.text:
                    continue
                messages = [
                    {"role": "user", "content": prompt.question},
                    {"role": "assistant", "content": answer.text.strip()},
                ]
                file.write(json.dumps({"messages": messages, "source": f"sampled/{prompt.source}"}) + "\n")
                kept, tokens = kept + 1, tokens + len(answer.token_ids)
    print(f"{kept} conversations, {tokens} tokens of answers")


if __name__ == "__main__":
    main()
