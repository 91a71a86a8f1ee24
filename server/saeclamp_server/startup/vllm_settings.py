"""vLLM's settings as saeclamp needs them: the worker, the hashed configuration, and good defaults on a CPU."""

from __future__ import annotations

import copy
import logging
import os
from argparse import Namespace
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from saeclamp_saes import SAEEntry
from saeclamp_saes.lm.text import read_text
from saeclamp_server.engine.worker_config import CONFIG_KEY
from saeclamp_server.model_info import ModelInfo, StartupError, in_one_line
from saeclamp_server.packaged_model import PACKAGED_MODEL
from saeclamp_server.startup.kv_cache_size import cache_shape, default_cache_size, free_memory, is_sized_by_user
from saeclamp_server.startup.options import DEFAULT_HOST, ServeOptions
from saeclamp_server.startup.preflight import is_for_cpus
from saeclamp_server.startup.tested_flags import check_tested_flags
from saeclamp_server.vectors import VectorSite
from saeclamp_server.vllm_compat import import_cli_args

logger = logging.getLogger("saeclamp.server")

STEER_OP = "vllm::saeclamp_steer"
V2_RUNNER = "VLLM_USE_V2_MODEL_RUNNER"


def prepare_environment() -> None:
    """
    Set what vLLM reads from the environment while it is imported. What the user has set stays.

    Raises StartupError where that cannot be steered.
    """
    given = os.environ.get(V2_RUNNER, "")
    # vLLM's own default is the V2 runner where there is Triton, which vLLM's build for CPUs has not
    if is_for_cpus():
        if os.environ.setdefault(V2_RUNNER, "0") not in ("", "0"):
            raise StartupError(f"{V2_RUNNER}={given}: on CPUs vLLM's V1 model runner is steered; unset it.")
    elif given not in ("", "1"):
        raise StartupError(f"{V2_RUNNER}={given}: on GPUs vLLM's V2 model runner is steered; unset it.")
    # torch has run in this process by now, and its threads do not survive a fork
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")


def served_names(args: Namespace) -> list[str]:
    """List the names under which the model is served, the first of which is that of receipts, variants and vectors."""
    return list(args.served_model_name or [args.model])


def count_workers(args: Namespace) -> int:
    """Count the processes that run the model."""
    return int(args.data_parallel_size * args.pipeline_parallel_size * args.tensor_parallel_size)


def bind_threads(num_workers: int) -> None:
    """
    Share all cores this process may use among the workers: a list for each, by data, pipeline, tensor parallel rank.

    Set in the environment, where the workers look for it; what the user has set there stays. vLLM's own choice leaves a
    core idle, which costs a third of the speed on two, and refuses more workers than there are NUMA nodes.
    """
    if not hasattr(os, "sched_getaffinity"):
        return
    cores = sorted(os.sched_getaffinity(0))
    shares = [cores[n * len(cores) // num_workers : (n + 1) * len(cores) // num_workers] for n in range(num_workers)]
    lists = [share or [cores[n % len(cores)]] for n, share in enumerate(shares)]
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "|".join(",".join(map(str, share)) for share in lists))


def parse_vllm_args(
    options: ServeOptions,
    model: ModelInfo,
    saes: Mapping[str, SAEEntry],
    places: Sequence[VectorSite] = (),
) -> Namespace:
    """
    Parse vLLM's flags with its own parser and add what steering needs.

    places: sites at which vectors can sit
    Raises StartupError.
    """
    from vllm.platforms import current_platform
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    cli_args = import_cli_args()
    parser = cli_args.make_arg_parser(FlexibleArgumentParser(prog="saeclamp serve"))
    parser.usage = "saeclamp serve MODEL [--sae NAME_OR_FOLDER]... [flags of vllm serve; see vllm serve --help]"
    utilization = parser.get_default("gpu_memory_utilization")
    # None in place of vLLM's utilization, so that it shows whether the user gave one
    parser.set_defaults(host=DEFAULT_HOST, enable_request_id_headers=True, gpu_memory_utilization=None)
    parser.error = _refuse_usage
    defaults: Namespace = parser.parse_args([model.path])
    args: Namespace = parser.parse_args([model.path, *options.vllm_argv])
    check_tested_flags(args, defaults)
    args.model = args.model_tag
    user_sized_cache = is_sized_by_user(args)
    args.gpu_memory_utilization = utilization if args.gpu_memory_utilization is None else args.gpu_memory_utilization
    check_parallelism(args, saes, places)
    if args.dtype in ("half", "float16") or (args.dtype == "auto" and model.is_float16):
        raise StartupError("float16 is too narrow for steering, large edits overflow; use --dtype bfloat16 or float32.")
    if options.model == PACKAGED_MODEL:
        args.served_model_name = args.served_model_name or [PACKAGED_MODEL]
        if current_platform.is_cpu() and args.dtype == "auto":
            args.dtype = "float32"  # faster than bfloat16 on CPUs without bf16 instructions, and exact
    if args.distributed_executor_backend is None and args.pipeline_parallel_size * args.tensor_parallel_size > 1:
        args.distributed_executor_backend = (
            "mp"  # inside a replica of Ray Serve vLLM would choose Ray's, with other workers
        )
    args.worker_cls = _worker_class(current_platform)
    args.scheduler_cls = "saeclamp_server.engine.scheduler.scheduler.make_scheduler"
    num_rows = options.max_features if options.offload_saes else None
    args.additional_config = {**(args.additional_config or {}), **_worker_config(args, saes, places, num_rows)}
    check_pipeline(args, has_gpus=current_platform.is_cuda())
    if current_platform.is_cuda() and any(sae.summary.keeps_largest for sae in saes.values()):
        leave_the_op_out_of_cuda_graphs(args)
    args.api_server_count = None
    cli_args.validate_parsed_serve_args(args)
    if current_platform.is_cpu() and not user_sized_cache:
        size = default_cache_size(cache_shape(args), free_memory() // count_workers(args))
        args.kv_cache_memory_bytes = size.num_bytes
        logger.info(str(size))
    return args


def _refuse_usage(message: str) -> NoReturn:
    """Refuse as everything else is refused, in place of argparse's usage of hundreds of flags."""
    raise StartupError(f"{in_one_line(message)}.")


def check_parallelism(args: Namespace, saes: Mapping[str, SAEEntry], places: Sequence[VectorSite] = ()) -> None:
    """Raise StartupError for SAEs or vectors at attention heads where tensor parallelism gives each worker some heads."""
    for sae in saes.values():
        sites = (*sae.summary.reads, *sae.summary.writes)
        if args.tensor_parallel_size > 1 and any(site.point == "attn_z" for site in sites):
            raise StartupError(f"SAE {sae.name!r} is at attention heads, which --tensor-parallel-size splits.")
    if args.tensor_parallel_size > 1 and any(place.site.point == "attn_z" for place in places):
        raise StartupError("--vector-site: attn_z is at attention heads, which --tensor-parallel-size splits.")


def _worker_class(platform: Any) -> str:
    if platform.is_cpu():
        return "saeclamp_server.engine.worker.cpu_worker.SteeringCPUWorker"
    if platform.is_cuda():
        return "saeclamp_server.engine.worker.gpu_worker.SteeringGPUWorker"
    raise StartupError(f"The platform {platform.device_name!r} is not supported; CPU and NVIDIA GPUs are.")


def _worker_config(
    args: Namespace, saes: Mapping[str, SAEEntry], places: Sequence[VectorSite], num_rows: int | None
) -> dict[str, Any]:
    """
    Write the worker's configuration.

    vLLM hashes it into its compile-cache key, so a graph without hooks is never loaded for one with them.
    """
    return {
        CONFIG_KEY: {
            "saes": [
                {
                    "name": sae.name,
                    "path": str(sae.path),
                    "options": str(sae.options),
                    "files": [str(path) for path in sae.summary.files],
                    "sha256": sae.sha256,
                    "num_rows": num_rows,
                    "sites": [str(site) for site in (*sae.summary.reads, *sae.summary.writes)],
                }
                for sae in saes.values()
            ],
            "places": [
                {
                    "name": place.bank_name,
                    "site": str(place.site),
                    "width": place.width,
                    "capacity": place.capacity,
                }
                for place in places
            ],
            "special_ids": special_ids(args.tokenizer or args.model, args.trust_remote_code),
        }
    }


def special_ids(tokenizer_path: str, trust_remote_code: bool = False) -> list[int]:
    """
    Return the ids of the tokenizer's special tokens: template marks, begin and end of text. They are attention sinks.

    Raises StartupError when there is no tokenizer.
    """
    tokenizer = _tokenizer(tokenizer_path, trust_remote_code)
    added = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    return sorted(added | set(tokenizer.all_special_ids))


def sample_ids(args: Namespace) -> list[int]:
    """Return the tokens of the text that SAEs are verified on at start."""
    tokenizer = _tokenizer(args.tokenizer or args.model, args.trust_remote_code)
    ids: list[int] = tokenizer(read_text(None), add_special_tokens=False, verbose=False)["input_ids"]
    return ids


def _tokenizer(path: str, trust_remote_code: bool) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as exc:
        raise StartupError(f"{path} has no tokenizer that can be read, and steering needs one.") from exc


def check_pipeline(args: Namespace, has_gpus: bool) -> None:
    """Raise StartupError for a way of scheduling in which vLLM's runner for this machine has no pipeline stages."""
    if args.pipeline_parallel_size == 1:
        return
    if has_gpus and args.async_scheduling is False:
        # a stage takes over a request's tokens as many steps later as there are stages, which the other scheduler keeps to
        raise StartupError(
            "--no-async-scheduling is not supported with --pipeline-parallel-size on GPUs. Leave it out."
        )
    if not has_gpus and args.async_scheduling:
        raise StartupError("--async-scheduling: vLLM's V1 model runner cannot with --pipeline-parallel-size.")


def leave_the_op_out_of_cuda_graphs(args: Namespace) -> None:
    """
    Split the compiled graph at the op, which runs eagerly between captured pieces: for TopK SAEs, which kernels cannot do.

    Raises StartupError for a --compilation-config that says otherwise.
    """
    from vllm.config import CompilationConfig, CUDAGraphMode

    if args.enforce_eager:
        return
    config = args.compilation_config = copy.copy(args.compilation_config)  # the parser's default is one object
    if config.cudagraph_mode not in (None, CUDAGraphMode.NONE, CUDAGraphMode.PIECEWISE):
        raise StartupError(
            f"--compilation-config: with a TopK SAE the CUDA graph is cut at its layer, so cudagraph_mode "
            f"{config.cudagraph_mode.name} is not supported. Leave it out."
        )
    config.splitting_ops = [*(config.splitting_ops or CompilationConfig._attention_ops), STEER_OP]
    config.cudagraph_mode = config.cudagraph_mode or CUDAGraphMode.PIECEWISE
