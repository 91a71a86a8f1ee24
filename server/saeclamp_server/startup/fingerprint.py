"""Description of a server, field by field: all that its answers depend on, beside the requests themselves."""

from __future__ import annotations

import asyncio
import hashlib
import json
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.renderers.chat_utils import load_chat_template

from saeclamp_saes.io.hashes import sha256_of
from saeclamp_server.fleet import check_fleet
from saeclamp_server.served_sae import ServedSAE
from saeclamp_server.startup.preflight import check_vllm_version
from saeclamp_server.startup.serve_plan import ServePlan
from saeclamp_server.startup.vllm_settings import served_names

SETTINGS = (
    "tokenizer",
    "seed",
    "hf_overrides",
    "generation_config",
    "override_generation_config",
    "kv_cache_dtype",
    "max_logprobs",
    "logprobs_mode",
    "reasoning_parser",
    "tool_call_parser",
    "enable_auto_tool_choice",
    "default_chat_template_kwargs",
)
"""vLLM's settings that change answers, and that neither the model's files nor its resolved configuration show."""
FROM_MEMORY = -1
"""`--max-model-len auto`: as long as the memory that is left lets it be, which only the engine knows."""
PARTS = (".json", ".jinja", ".model", ".txt", ".py")
"""Endings of a model's files that answers depend on, beside its weights."""
WEIGHTS = (".safetensors", ".bin", ".gguf", ".pt")
"""Endings of files that are told apart by their sizes: hashing tens of gigabytes would keep the server from starting."""


def server_fingerprint(
    args: Namespace, plan: ServePlan, model_config: Any, served_saes: Mapping[str, ServedSAE]
) -> dict[str, str]:
    """
    Describe a server by what must be the same on each of a fleet.

    args:         vLLM's
    model_config: vLLM's, as the engine has resolved it
    """
    fields = _known_before_the_engine(args, plan, model_config)
    for name, sae in served_saes.items():
        fields[f"the labels of {name}"] = sha256_of(sae.labels.path) if sae.labels else "none"
        fields[f"the calibration curves of {name}"] = _digest({str(index): one for index, one in sae.curves.items()})
    return fields


def _known_before_the_engine(args: Namespace, plan: ServePlan, model_config: Any) -> dict[str, str]:
    options = plan.options
    fields = {
        **{package: version(package) for package in ("saeclamp", "torch", "transformers")},
        "vllm": check_vllm_version(),
        "the model": _model(plan.model.path, model_config),
        "the names that it is served under": _json(served_names(args)),
        "--dtype": str(model_config.dtype).removeprefix("torch."),
        "--quantization": str(model_config.quantization),
        "--max-model-len": str(model_config.max_model_len),
        "--chat-template": _digest(load_chat_template(args.chat_template)),
        **{f"--{name.replace('_', '-')}": _json(getattr(args, name)) for name in SETTINGS},
        "--max-dose": str(options.max_dose),
        "--max-body": str(options.max_body),
        "--max-features": str(options.max_features),
        "the sites for vectors": _json([[str(place.site), place.capacity] for place in plan.places]),
        "the names of the SAEs": _json(sorted(plan.saes)),
    }
    for name, entry in plan.saes.items():
        fields[f"SAE {name}"] = entry.sha256
        fields[f"the feature book of {name}"] = _digest([asdict(note) for note in entry.features.values()])
    return fields


async def refuse_unlike_fleet(args: Namespace, plan: ServePlan) -> None:
    """
    Compare this server with its fleet, if it has one, as far as is known before the engine starts, which takes minutes.

    args: vLLM's
    Raises StartupError.
    """
    if plan.options.fleet is None:
        return
    model_config = AsyncEngineArgs.from_cli_args(args).create_model_config()
    fields = _known_before_the_engine(args, plan, model_config)
    if args.max_model_len == FROM_MEMORY:
        del fields["--max-model-len"]
    await asyncio.to_thread(check_fleet, plan.database, plan.options.fleet, fields)


def set_system_fingerprint(args: Namespace, fields: Mapping[str, str]) -> None:
    """
    Let `system_fingerprint` in answers be the same on all servers of a fleet, unless the user chose what it is.

    vLLM's own is a hash of its configuration too, with the paths of this machine in it.

    args:   vLLM's, which are changed
    fields: what `server_fingerprint` returns
    """
    if args.fingerprint_mode in ("full", "hash"):
        args.fingerprint_mode, args.fingerprint_value = "custom", f"vllm-{fields['vllm']}-{_digest(fields)[:8]}"


def _model(path: str, model_config: Any) -> str:
    folder = Path(path)
    if not folder.is_dir():
        commit = getattr(model_config.hf_config, "_commit_hash", None)
        return f"{path}@{commit or model_config.revision or 'main'}"
    files = sorted(file for file in folder.iterdir() if file.is_file() and file.suffix in PARTS + WEIGHTS)
    return _digest([[file.name, file.stat().st_size if file.suffix in WEIGHTS else sha256_of(file)] for file in files])


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _digest(value: Any) -> str:
    return hashlib.sha256(_json(value).encode()).hexdigest()
