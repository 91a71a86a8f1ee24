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
from saeclamp_server.startup.preflight import vllm_version
from saeclamp_server.startup.serve_plan import ServePlan
from saeclamp_server.startup.vllm_settings import served_names

SETTINGS = (
    # requests and answers
    "chat_template_content_format",
    "trust_request_chat_template",
    "default_chat_template_kwargs",
    "reasoning_effort_map",
    "response_role",
    "return_tokens_as_token_ids",
    "enable_auto_tool_choice",
    "exclude_tools_when_tool_choice_none",
    "tool_call_parser",
    "tool_strict_level",
    "reasoning_parser",
    "structured_outputs_config",
    "enable_prompt_tokens_details",
    "enable_per_request_metrics",
    "enable_force_include_usage",
    "enable_request_id_headers",
    "enable_tokenizer_info_endpoint",
    "disable_fastapi_docs",
    "fingerprint_mode",
    "fingerprint_value",
    "anthropic_disabled_thinking_effort",
    "override_generation_config",
    "max_logprobs",
    "logprobs_mode",
    "seed",
    "enable_prompt_embeds",
    # the model
    "tokenizer_mode",
    "trust_remote_code",
    "hf_overrides",
    "kv_cache_dtype",
    "speculative_config",
    # what a receipt has measured, and what a queue is sorted by
    "enable_prefix_caching",
    "scheduling_policy",
)
"""
vLLM's settings that change answers, and that neither the model's files nor its resolved configuration show.

Not every version has each.
"""
FILES = ("tool_parser_plugin", "reasoning_parser_plugin", "generation_config", "tokenizer")
"""The same that name files or folders, which other machines may have elsewhere."""
PARTS = (".json", ".jinja", ".model", ".tiktoken", ".txt", ".py")
"""Endings of a model's files that answers depend on, beside its weights."""
WEIGHTS = (".safetensors", ".bin", ".gguf", ".pt")
"""Endings of files that are told apart by their sizes: hashing tens of gigabytes would keep the server from starting."""
FROM_MEMORY = -1
"""`--max-model-len auto`: as long as the memory that is left lets it be, which only the engine knows."""


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
        "vllm": vllm_version(),
        "the model": _model(plan.model.path, model_config),
        "the names that it is served under": _json(served_names(args)),
        "--dtype": str(model_config.dtype).removeprefix("torch."),
        "--quantization": str(model_config.quantization),
        "--max-model-len": str(model_config.max_model_len),
        "--chat-template": _digest(load_chat_template(args.chat_template)),
        **{_flag(name): _json(vars(args).get(name)) for name in SETTINGS},
        **{_flag(name): _contents(getattr(args, name)) for name in FILES},
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
    return _folder(folder)


def _contents(named: Any) -> str:
    """Digest the file or folder that a setting names; what is neither is told as it is."""
    path = Path(str(named))
    if path.is_dir():
        return _folder(path)
    return sha256_of(path) if path.is_file() else _json(named)


def _folder(folder: Path) -> str:
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.suffix in PARTS + WEIGHTS)
    return _digest(
        [
            [str(file.relative_to(folder)), file.stat().st_size if file.suffix in WEIGHTS else sha256_of(file)]
            for file in files
        ]
    )


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _digest(value: Any) -> str:
    return hashlib.sha256(_json(value).encode()).hexdigest()
