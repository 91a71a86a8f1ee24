"""What is printed once a server answers: its address, and a request to try."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
from argparse import Namespace
from collections.abc import Mapping
from typing import Any

from saeclamp._requests import API_KEY_VARIABLE
from saeclamp_saes import SAEEntry
from saeclamp_saes.library.feature_book import FeatureNote
from saeclamp_server.startup.server_log import ServerLog

WITH_KEY = f", where {API_KEY_VARIABLE} has the server's key (export {API_KEY_VARIABLE}=...)"


async def print_ready(state: Any, args: Namespace, saes: Mapping[str, SAEEntry], address: str, log: ServerLog) -> None:
    """Wait until the server answers, then say so."""
    while not getattr(getattr(state, "server", None), "started", False):
        await asyncio.sleep(0.05)
    model = args.served_model_name[0] if args.served_model_name else args.model
    if not saes:
        log.say(f"ready on {address}. Upload vectors to {address}/v1/vectors.")
        return
    # --api-key of vLLM, or its variable
    needs_key = bool(getattr(args, "api_key", None) or os.environ.get("VLLM_API_KEY"))
    log.say(f"ready on {address}. Try{WITH_KEY if needs_key else ''}:\n")
    log.show(example_request(address, model, next(iter(saes.values())), needs_key))


def _value(note: FeatureNote) -> float:
    return note.best or (note.clamp[1] if note.clamp else 1)


def example_request(address: str, model: str, sae: SAEEntry, needs_key: bool = False) -> str:
    """
    Write a `curl` that steers, quoted for the shell: names come from files that others have written.

    needs_key: whether the server wants a key; it is not printed, but has its place
    """
    note = next((note for note in sae.features.values() if note.max_act is not None), None)
    feature, value, unit = (note.name, _value(note), "max_act") if note else ("0", 10, "act")
    body = (
        f'{{\n  "model": {json.dumps(model)}, "temperature": 0, "repetition_penalty": 1.1, "max_tokens": 60,\n'
        f'  "messages": [{{"role": "user", "content": "Why is the sky blue?"}}],\n'
        f'  "steering": {{"interventions": [{{"op": "clamp", "feature": {json.dumps(f"{sae.name}/{feature}")}, '
        f'"value": {value}, "unit": "{unit}"}}]}}}}'
    )
    key = f' -H "Authorization: Bearer ${API_KEY_VARIABLE}"' if needs_key else ""
    return f"curl {address}/v1/chat/completions{key} -H 'Content-Type: application/json' -d {shlex.quote(body)}\n"
