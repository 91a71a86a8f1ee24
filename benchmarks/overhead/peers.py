"""
The same edit by hooks in a model that runs in this process: transformers, nnsight, and SAELens' hooked transformer.

    python -m benchmarks.overhead.peers NAME

Reads a line `BATCH NUM_TOKENS` at a time, generates, and answers with a line of the seconds it took; of the first it also
says the token ids. nnsight is no dependency of the project: pip install nnsight==0.8.1
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from benchmarks.overhead.load import prompt
from tests.support.bundled import GOLDEN_GATE, LAYER
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from saeclamp_saes import read_sae
from saeclamp_saes.cli.log_handler import set_up_log
from saeclamp_saes.library.reference import BUNDLED
from saeclamp_server.packaged_model import prepared_model

VALUE = 150.0
"""Activation to which the feature is clamped."""

Generate = Callable[[Tensor, int], Tensor]
"""(batch, prompt_len) token ids and a number of new tokens to (batch, prompt_len + num_tokens)."""


class Clamp:
    """One feature of the bundled SAE set to `VALUE`: its encoder's column and its decoder's row, and nothing else of it."""

    def __init__(self) -> None:
        sae = read_sae(Path(BUNDLED["bundled"]))
        self._encoder, self._decoder = sae.W_enc[:, GOLDEN_GATE].float(), sae.W_dec[GOLDEN_GATE].float()
        # the subtraction of b_dec from the input is folded into the bias
        self._bias, self._threshold = float(sae.b_enc[GOLDEN_GATE]), float(sae.threshold[GOLDEN_GATE])

    def __call__(self, stream: Tensor) -> Tensor:
        """Edit (batch, num_tokens, width) in place; the sink at position 0 stays."""
        ordinary = stream[:, 1:] if stream.shape[1] > 1 else stream
        act = ordinary @ self._encoder + self._bias
        act = torch.where(act > self._threshold, act, 0.0)
        ordinary += (VALUE - act)[..., None] * self._decoder
        return stream


def transformers_hooks(model: Any, tokenizer: Any, clamp: Clamp) -> Generate:
    """A forward hook on the layer."""
    model.model.layers[LAYER].register_forward_hook(lambda module, args, output: clamp(output))
    return lambda ids, num: model.generate(ids, **_greedy(num))


def nnsight(model: Any, tokenizer: Any, clamp: Clamp) -> Generate:
    """An intervention graph on the layer, at every step."""
    from nnsight import LanguageModel

    traced = LanguageModel(model, tokenizer=tokenizer)

    def generate(ids: Tensor, num: int) -> Tensor:
        with traced.generate(ids, **_greedy(num)) as tracer:
            for _ in tracer.iter[:num]:
                traced.model.layers[LAYER].output = clamp(traced.model.layers[LAYER].output)
            result = tracer.result.save()
        return result  # type: ignore[no-any-return]

    return generate


def saelens(model: Any, tokenizer: Any, clamp: Clamp) -> Generate:
    """A hook on SAELens' own transformer, with the same weights; it cannot load this model by name."""
    from sae_lens import HookedSAETransformer
    from transformer_lens import HookedTransformerConfig
    from transformer_lens.pretrained.weight_conversions import convert_llama_weights

    like = model.config
    width = like.hidden_size // like.num_attention_heads
    config = HookedTransformerConfig(
        n_layers=like.num_hidden_layers,
        d_model=like.hidden_size,
        n_heads=like.num_attention_heads,
        n_key_value_heads=like.num_key_value_heads,
        d_head=width,
        d_mlp=like.intermediate_size,
        d_vocab=like.vocab_size,
        n_ctx=2048,
        act_fn="silu",
        gated_mlp=True,
        normalization_type="RMS",
        final_rms=True,
        eps=like.rms_norm_eps,
        positional_embedding_type="rotary",
        rotary_adjacent_pairs=False,
        rotary_dim=width,
        rotary_base=int(like.rope_parameters["rope_theta"]),
        original_architecture="LlamaForCausalLM",
        dtype=torch.float32,
        default_prepend_bos=False,
    )
    hooked = HookedSAETransformer(config, tokenizer=tokenizer)
    hooked.load_and_process_state_dict(
        convert_llama_weights(model, config),
        fold_ln=False,
        center_writing_weights=False,
        center_unembed=False,
        fold_value_biases=False,
    )
    hooked.add_hook(f"blocks.{LAYER}.hook_resid_post", lambda stream, hook: clamp(stream))
    return lambda ids, num: hooked.generate(
        ids,
        max_new_tokens=num,
        do_sample=False,
        stop_at_eos=False,
        prepend_bos=False,
        return_type="tokens",
        verbose=False,
    )


def _greedy(num_tokens: int) -> dict[str, Any]:
    return {"max_new_tokens": num_tokens, "min_new_tokens": num_tokens, "do_sample": False}


PEERS = {"transformers": transformers_hooks, "nnsight": nnsight, "saelens": saelens}


class Peer:
    """One of them in a process of its own."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.first_ids: list[int] = self._read()

    def run(self, batch: int, num_tokens: int) -> float:
        """Seconds that so many answers took."""
        assert self._process.stdin is not None
        print(batch, num_tokens, file=self._process.stdin, flush=True)
        seconds: float = self._read()
        return seconds

    def _read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._process.args!r} ended with status {self._process.wait()}")
        return json.loads(line)


@contextmanager
def started(name: str) -> Iterator[Peer]:
    """Start one of `PEERS`, and end it with the block."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.overhead.peers", name]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Peer(process)
        finally:
            process.kill()


@torch.no_grad()
def main() -> None:
    """Answer the first prompt, then what is asked for."""
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries print too
    set_up_log()
    folder = prepared_model()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    generate = PEERS[sys.argv[1]](model, tokenizer, Clamp())

    def ids(batch: int) -> Tensor:
        return torch.tensor([tokenizer(prompt(number))["input_ids"] for number in range(batch)])

    print(generate(ids(1), 16)[0].tolist(), file=answers, flush=True)
    for line in sys.stdin:
        batch, num_tokens = map(int, line.split())
        asked = time.perf_counter()
        shape = generate(ids(batch), num_tokens).shape
        seconds = time.perf_counter() - asked
        if shape != (batch, ids(1).shape[1] + num_tokens):
            raise RuntimeError(f"{sys.argv[1]} generated {shape}")
        print(seconds, file=answers, flush=True)


if __name__ == "__main__":
    main()
