"""
vLLM's flags, one by one: which may be given with steering, at which values, and why not.

Every argument of the parsers of the versions that are served is in one of the four tables; one that is in none is refused
unless it is left at its default. What is allowed at any value was tried, or acts on what steering neither reads nor changes:
how requests are rendered and answers written, how tokens are sampled, where weights come from, how much memory is used.
"""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from saeclamp_server.model_info import StartupError

ALLOWED = frozenset(
    {
        # the command itself
        "help", "model_tag", "config", "fail_on_environ_validation",
        # HTTP
        "host", "port", "root_path", "api_key", "middleware", "enable_request_id_headers", "disable_fastapi_docs",
        "enable_offline_docs", "allow_credentials", "allowed_origins", "allowed_methods", "allowed_headers",
        "ssl_keyfile", "ssl_certfile", "ssl_ca_certs", "enable_ssl_refresh", "ssl_cert_reqs", "ssl_ciphers",
        "h11_max_incomplete_event_size", "h11_max_header_count", "enable_tokenizer_info_endpoint",
        # requests and answers
        "served_model_name", "chat_template", "chat_template_content_format", "trust_request_chat_template",
        "default_chat_template_kwargs", "reasoning_effort_map", "response_role", "return_tokens_as_token_ids",
        "enable_auto_tool_choice", "exclude_tools_when_tool_choice_none", "tool_call_parser", "tool_parser_plugin",
        "tool_strict_level",
        "reasoning_parser", "reasoning_parser_plugin", "structured_outputs_config", "enable_prompt_tokens_details",
        "enable_per_request_metrics", "enable_server_load_tracking", "enable_force_include_usage", "fingerprint_mode",
        "fingerprint_value", "anthropic_disabled_thinking_effort", "generation_config", "override_generation_config",
        "max_logprobs", "logprobs_mode", "seed", "enable_prompt_embeds",
        # logs and metrics
        "disable_log_stats", "aggregate_engine_logging", "enable_log_requests", "max_log_len", "enable_log_outputs",
        "enable_log_deltas", "log_error_stack", "log_level", "log_config_file", "logging_config", "uvicorn_log_level",
        "disable_uvicorn_access_log", "disable_access_log_for_endpoints", "show_hidden_metrics_for_version",
        "otlp_traces_endpoint", "collect_detailed_traces", "per_request_spec_decode_metrics", "kv_cache_metrics",
        "kv_cache_metrics_sample", "custom_histogram_buckets", "cudagraph_metrics", "enable_mfu_metrics",
        "enable_logging_iteration_details", "jit_monitor_mode", "jit_monitor_verbose", "use_tqdm_on_load",
        # the model, and how it is loaded
        "tokenizer", "trust_remote_code", "dtype", "max_model_len", "hf_token", "download_dir", "enforce_eager",
        "safetensors_load_strategy", "safetensors_prefetch_num_threads", "safetensors_prefetch_block_size",
        "model_loader_extra_config", "ignore_patterns", "pt_load_map_location", "max_parallel_loading_workers",
        # kernels and compilation
        "attention_backend", "attention_config", "disable_cascade_attn", "compilation_config", "optimization_level",
        "performance_mode", "cudagraph_capture_sizes", "max_cudagraph_capture_size", "enable_flashinfer_autotune",
        "moe_backend", "linear_backend", "disable_custom_all_reduce",
        # processes on this machine
        "tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size", "distributed_timeout_seconds",
        "cpu_distributed_timeout_seconds",
        # the KV cache and the batch
        "block_size", "gpu_memory_utilization", "kv_cache_memory_bytes", "num_gpu_blocks_override",
        "enable_prefix_caching", "kv_offloading_size", "max_num_batched_tokens", "max_num_scheduled_tokens",
        "max_num_seqs", "max_num_active_seqs", "max_num_queued_reqs", "max_num_queued_tokens", "scheduling_policy",
        "long_prefill_token_threshold", "long_prefill_token_threshold_adaptive", "enable_chunked_prefill",
        "scheduler_reserve_full_isl", "watermark", "prefill_schedule_interval", "disable_hybrid_kv_cache_manager",
        "async_scheduling",
    }
)  # fmt: skip

SOME_VALUES: dict[str, tuple[tuple[Any, ...], str]] = {
    "api_server_count": ((None, 1), "reports of requests reach one process only"),
    "config_format": (("auto", "hf"), "layers and widths are read from a config.json"),
    "convert": (("auto", "none"), "only what generates text is steered"),
    "data_parallel_backend": (("mp",), "all engines must run on this machine"),
    "distributed_executor_backend": ((None, "uni", "mp"), "all workers must run on this machine"),
    "kv_cache_dtype": (("auto", "bfloat16"), "narrower keys and values were not tried"),
    "kv_offloading_backend": (("native",), "LMCache finds blocks by their tokens, whatever was steered in them"),
    "load_format": (("auto", "hf", "safetensors", "pt", "dummy"), "others were not tried"),
    "model_impl": (("auto",), "where layers are hooked depends on it"),
    "prefix_caching_hash_algo": (("sha256", "sha256_cbor"), "blocks of other requests could be met by a chosen prompt"),
    "runner": (("auto", "generate"), "only what generates text is steered"),
    "tokenizer_mode": (("auto", "hf", "slow"), "special tokens are looked up in Hugging Face's tokenizer"),
}
"""Settings that steering allows at some values, and why not at others."""

_LORA = "adapters were not tried; merge one into the model, and serve that"
_CLUSTER = "all of a server must run on this machine"
_MULTIMODAL = "models that see or hear cannot be steered"
_HIDDEN = "the model's configuration is read before vLLM starts; change its config.json instead"
_REVISION = "download that revision, and serve its folder"
_TRANSFER = "blocks would be taken for others' by what does not know how they were steered"
_QUANTIZED = "quantized weights were not tried"
_MAMBA = "no model with such layers can be steered"
_OWN = "steering brings its own"
_NOT_TRIED = "it was not tried"

REFUSED: dict[str, str] = {
    **dict.fromkeys(("worker_cls", "worker_extension_cls", "scheduler_cls", "additional_config"), _OWN),
    **dict.fromkeys(
        ("enable_lora", "lora_modules", "max_loras", "max_lora_rank", "lora_dtype", "enable_tower_connector_lora",
         "max_cpu_loras", "fully_sharded_loras", "lora_target_modules", "default_mm_loras", "specialize_active_lora",
         "enable_mixed_moe_lora_format", "enable_moe_shared_loras", "max_lora_cls_labels"), _LORA,
    ),
    **dict.fromkeys(
        ("headless", "nnodes", "node_rank", "master_addr", "master_port", "data_parallel_rank",
         "data_parallel_start_rank", "data_parallel_address", "data_parallel_rpc_port", "data_parallel_hybrid_lb",
         "data_parallel_external_lb", "data_parallel_multi_port_external_lb", "data_parallel_supervisor_port",
         "dp_supervisor_probe_interval_s", "dp_supervisor_probe_timeout_s", "dp_supervisor_probe_failure_threshold",
         "enable_elastic_ep", "elastic_ep_max_dp_size", "enable_fault_tolerance", "fault_tolerance_config",
         "ray_workers_use_nsight", "enable_scale_out", "tokens_only"), _CLUSTER,
    ),
    **dict.fromkeys(
        ("trust_request_mm_kwargs", "allowed_local_media_path", "allowed_media_domains", "language_model_only",
         "limit_mm_per_prompt", "enable_mm_embeds", "media_io_kwargs", "mm_processor_kwargs", "mm_processor_cache_gb",
         "mm_processor_cache_type", "mm_hasher_algorithm", "mm_shm_cache_max_object_size_mb", "mm_encoder_only",
         "mm_encoder_tp_mode", "mm_encoder_attn_backend", "mm_encoder_attn_dtype", "mm_encoder_fp8_scale_path",
         "mm_encoder_fp8_scale_save_path", "mm_encoder_fp8_scale_save_margin", "interleave_mm_strings",
         "skip_mm_profiling", "video_pruning_rate", "video_pruning_method", "mm_tensor_ipc", "mm_processor_device",
         "mm_ipc_gpu_memory_gb", "mm_device_do_normalize", "disable_chunked_mm_input", "ec_transfer_config",
         "ec_manager_config", "enable_shm_tensor_arena"), _MULTIMODAL,
    ),
    **dict.fromkeys(
        ("enable_expert_parallel", "enable_ep_weight_filter", "all2all_backend", "enable_eplb", "eplb_config",
         "expert_placement_strategy", "enable_return_routed_experts", "enable_dbo", "ubatch_size",
         "dbo_decode_token_threshold", "dbo_prefill_token_threshold"), _NOT_TRIED,
    ),
    **dict.fromkeys(("hf_config_path", "hf_overrides", "model_class_overrides"), _HIDDEN),
    **dict.fromkeys(("revision", "code_revision", "tokenizer_revision"), _REVISION),
    **dict.fromkeys(
        ("kv_transfer_config", "kv_events_config", "kv_sharing_fast_prefill", "prefix_match_unit",
         "prefix_cache_retention_interval"), _TRANSFER,
    ),
    **dict.fromkeys(
        ("quantization", "quantization_config", "allow_deprecated_quantization", "kv_cache_dtype_skip_layers"),
        _QUANTIZED,
    ),
    **dict.fromkeys(
        ("mamba_backend", "mamba_ssu_algorithm", "enable_mamba_cache_stochastic_rounding", "mamba_cache_philox_rounds",
         "mamba_cache_dtype", "mamba_ssm_cache_dtype", "mamba_block_size", "mamba_cache_mode",
         "enable_mamba_shared_prefix_checkpoint", "replayssm_buffer_len", "use_replayssm", "gdn_prefill_backend",
         "kda_prefill_backend", "kda_decode_backend", "engram_config", "diffusion_config"), _MAMBA,
    ),
    "model": "the model comes first: saeclamp serve MODEL",
    "shutdown_timeout": "use --drain SECONDS, which also waits for receipts",
    "sse_keep_alive_interval": "comments in a stream would part its last chunk from the receipt",
    "stream_interval": "readouts and rules look at each token as it comes",
    "skip_tokenizer_init": "steering needs a tokenizer",
    "uds": "use --host and --port; it was not tried",
    "grpc": "steering is asked for over HTTP",
    "grpc_port": "steering is asked for over HTTP",
    "prefill_context_parallel_size": "a prompt must be computed by one worker",
    **dict.fromkeys(
        ("decode_context_parallel_size", "dcp_comm_backend", "dcp_q_replicate", "dcp_kv_cache_interleave_size",
         "cp_kv_cache_interleave_size", "enable_hc_sp"), "each layer's tokens must be computed by one worker",
    ),
    **dict.fromkeys(("spec_method", "spec_model", "spec_tokens"), "use --speculative-config with the method ngram"),
    **dict.fromkeys(
        ("enable_sleep_mode", "sleep_mode_backend", "sleep_mode_offload_cudagraph",
         "sleep_preserve_parameter_names", "enable_cumem_allocator", "enable_nccl_comm_suspend", "weight_transfer_config"),
        "weights that go and come would leave the SAEs behind",
    ),
    **dict.fromkeys(
        ("offload_backend", "cpu_offload_gb", "cpu_offload_params", "offload_group_size", "offload_num_in_group",
         "offload_prefetch_step", "offload_params"),
        "layers that move between memories were not tried; --offload-saes keeps SAEs in the host's",
    ),
    **dict.fromkeys(("numa_bind", "numa_bind_nodes", "numa_bind_cpus"), "saeclamp shares the cores itself"),
    "device_ids": "set CUDA_VISIBLE_DEVICES instead",
    **dict.fromkeys(("pooler_config", "io_processor_plugin", "enable_flash_late_interaction"), "only generation is steered"),
    **dict.fromkeys(("cohere_is_reasoning_model", "cohere_format"), "Cohere's endpoints are not served"),
    **dict.fromkeys(
        ("tool_server", "return_sampling_mask", "use_fp64_gumbel", "enable_trace_replay", "disable_sliding_window",
         "logits_processors", "renderer_num_workers", "enable_batch_sharded_sampling", "dp_sync_interval",
         "disable_nccl_for_dp_synchronization", "swa_bounded_replay", "enable_layerwise_nvtx_tracing", "ir_op_priority",
         "kernel_config", "sparse_indexer_topk_backend", "watermark_config", "reasoning_config", "aux_output_config",
         "profiler_config", "watchdog_config", "monokernel"), _NOT_TRIED,
    ),
}  # fmt: skip
"""Settings that steering allows at their default only, and what to do instead, or why."""

JUDGED = frozenset({"speculative_config", "data_parallel_size_local"})
"""Settings that are allowed depending on others."""

DRAFTS = "ngram"
"""The one method of speculative decoding with which steering has been tested: drafts without a model."""


def check_tested_flags(args: Namespace, defaults: Namespace) -> None:
    """
    Raise StartupError for a setting under which nobody has tried to steer.

    args:     as vLLM's parser gives them
    defaults: as it gives them for a command line without flags
    """
    plain = vars(defaults)
    for name, value in vars(args).items():
        is_left_alone = name in plain and value == plain[name]
        if not is_left_alone and name not in ALLOWED | JUDGED:
            _refuse(name, value)
    if args.speculative_config and args.speculative_config.get("method") != DRAFTS:
        raise StartupError(f"Of speculative decoding, only the method {DRAFTS} is supported with steering.")
    if args.pipeline_parallel_size > 1 and args.speculative_config:
        raise StartupError(
            "--speculative-config is not supported with --pipeline-parallel-size. Leave one of them out."
        )
    if args.data_parallel_size_local not in (None, args.data_parallel_size):
        raise StartupError(f"--data-parallel-size-local: {_CLUSTER}.")


def _refuse(name: str, value: Any) -> None:
    flag = f"--{name.replace('_', '-')}"
    if name in SOME_VALUES:
        values, reason = SOME_VALUES[name]
        if value not in values:
            known = " or ".join(str(one) for one in values if one is not None)
            raise StartupError(f"{flag} {value} is not supported with steering yet: {reason}. Use {known}.")
        return
    reason = REFUSED.get(name, "this version of saeclamp does not know it")
    raise StartupError(f"{flag} is not supported with steering yet: {reason}. Leave it out.")
