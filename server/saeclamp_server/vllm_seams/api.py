"""Seams of the API process: the command line, HTTP, the requests, and the engine's client."""

from __future__ import annotations

from saeclamp_server.vllm_seams.seam import Seam

STARTUP = (
    Seam(("vllm.entrypoints.common.cli_args", "vllm.entrypoints.launchers.cli_args"),
         calls=("make_arg_parser(parser)", "validate_parsed_serve_args(args)")),
    Seam("vllm.utils.argparse_utils", names="FlexibleArgumentParser"),
    Seam("vllm.platforms", names="current_platform"),
    Seam("vllm.config", names="CompilationConfig CUDAGraphMode",
         reads={"CompilationConfig": "_attention_ops splitting_ops cudagraph_mode", "CUDAGraphMode": "NONE PIECEWISE"}),
    Seam("vllm.engine.arg_utils",
         calls=("AsyncEngineArgs.from_cli_args(args)", "AsyncEngineArgs.create_engine_config(usage_context)",
                "AsyncEngineArgs.create_model_config()")),
    Seam("vllm.usage.usage_lib", reads={"UsageContext": "OPENAI_API_SERVER"}),
    Seam("vllm.renderers.chat_utils", calls=("load_chat_template(chat_template)",)),
    Seam("vllm.utils.torch_utils",
         calls=("get_dtype_size(dtype)", "kv_cache_dtype_str_to_dtype(kv_cache_dtype, model_config)")),
    Seam("vllm.utils.cpu_resource_utils", calls=("get_allowed_cpu_list()", "get_memory_node_info(node_id)"),
         reads={"MemoryNodeInfo": "available_memory"}),
    Seam("vllm.config.model",
         reads={"ModelConfig": "dtype quantization max_model_len original_max_model_len tokenizer_mode"},
         calls=("ModelConfig.get_num_layers(parallel_config)", "ModelConfig.get_num_kv_heads(parallel_config)",
                "ModelConfig.get_head_size()", "ModelConfig.get_vocab_size()", "ModelConfig.get_sliding_window()")),
    Seam("vllm.config.cache", reads={"CacheConfig": "cache_dtype block_size"}),
    Seam("vllm.config.scheduler",
         reads={"SchedulerConfig": "max_num_seqs max_num_batched_tokens async_scheduling"}),
    Seam("vllm.config.parallel", reads={"ParallelConfig": "tensor_parallel_size data_parallel_size"}),
    Seam("vllm.config.vllm",
         reads={"VllmConfig": "model_config scheduler_config parallel_config cache_config speculative_config "
                "additional_config"}),
)  # fmt: skip

HTTP = (
    Seam("vllm", names="SamplingParams envs"),
    Seam("vllm.envs", names="VLLM_API_KEY VLLM_HTTP_TIMEOUT_KEEP_ALIVE VLLM_SKIP_MODEL_NAME_VALIDATION"),
    Seam("vllm.entrypoints.launchers.launcher", names="NoSignalServer",
         calls=("watchdog_loop(server, engine)", "setup_server(args, *, reuse_port)")),
    Seam("vllm.entrypoints.launchers.utils.constants",
         names="H11_MAX_HEADER_COUNT_DEFAULT H11_MAX_INCOMPLETE_EVENT_SIZE_DEFAULT"),
    Seam("vllm.entrypoints.launchers.utils.server_utils", calls=("get_uvicorn_log_config(args)",)),
    Seam("vllm.entrypoints.launchers.utils.ssl",
         calls=("SSLCertRefresher(*, ssl_context, key_path, cert_path, ca_path)", "SSLCertRefresher.stop()")),
    Seam("vllm.entrypoints.launchers.app", calls=("build_app(args, supported_tasks, model_config)",)),
    Seam("vllm.entrypoints.launchers.api_server.app_state",
         calls=("init_app_state(engine_client, state, args, supported_tasks)",)),
    Seam("vllm.entrypoints.launchers.api_server.entry", calls=("build_async_engine_client(args)",)),
    Seam("vllm.entrypoints.serve.middleware.authenticate", names="AuthenticationMiddleware"),
    Seam("vllm.entrypoints.serve.exception_handling.error_response",
         calls=("create_error_response(message, err_type, status_code)",)),
    Seam("vllm.entrypoints.serve.engine.protocol", reads={"ErrorResponse": "error", "ErrorInfo": "message code"}),
    Seam("vllm.entrypoints.serve.utils.api_utils", names="validate_json_request"),
    Seam("vllm.exceptions", names="GenerationError VLLMClientError VLLMValidationError"),
    Seam("vllm.v1.metrics.prometheus", calls=("get_prometheus_registry()",)),
    Seam("vllm.entrypoints.openai.chat_completion.api_router", calls=("create_chat_completion(request, raw_request)",)),
    Seam("vllm.entrypoints.openai.completion.api_router", calls=("create_completion(request, raw_request)",)),
    Seam("vllm.entrypoints.openai.chat_completion.protocol",
         reads={"ChatCompletionRequest": "model n use_beam_search include_stop_str_in_output return_token_ids "
                "truncate_prompt_tokens field_names"},
         overrides=("ChatCompletionRequest.to_sampling_params(*args, **kwargs)",)),
    Seam("vllm.entrypoints.openai.completion.protocol",
         reads={"CompletionRequest": "model n use_beam_search include_stop_str_in_output return_token_ids prompt echo "
                "prompt_embeds field_names"},
         overrides=("CompletionRequest.to_sampling_params(*args, **kwargs)",)),
    Seam("vllm.renderers.online_renderer",
         calls=("OnlineRenderer.render_chat(request)", "OnlineRenderer.render_completion(request)")),
    Seam("vllm.entrypoints.openai.models.serving",
         reads={"OpenAIServingModels": "base_model_paths lora_requests"},
         calls=("OpenAIServingModels.show_available_models()",)),
    Seam("vllm.entrypoints.openai.responses.protocol",
         names="ResponseCompletedEvent", reads={"ResponsesResponse": "status incomplete_details output"}),
    Seam("vllm.entrypoints.openai.responses.serving",
         overrides=(
             "OpenAIServingResponses.responses_full_generator(request, sampling_params, result_generator, context, *args, "
             "**kwargs)",
             "OpenAIServingResponses.responses_stream_generator(request, sampling_params, result_generator, context, *args, "
             "**kwargs)",
             "OpenAIServingResponses.create_responses(*args, **kwargs)",
             "OpenAIServingResponses.retrieve_responses(*args, **kwargs)",
             "OpenAIServingResponses._generate_with_builtin_tools(*args, engine_input, sampling_params, **kwargs)",
         )),
    Seam("vllm.entrypoints.anthropic.serving",
         overrides=("AnthropicServingMessages.message_stream_converter(generator)",
                    "AnthropicServingMessages.messages_full_converter(generator)")),
)  # fmt: skip

ENGINE_CLIENT = (
    Seam("vllm.sampling_params",
         reads={"SamplingParams": "structured_outputs extra_args max_tokens skip_reading_prefix_cache"},
         calls=("SamplingParams(*, temperature, max_tokens, logprobs, logprob_token_ids, prompt_logprobs, flat_logprobs, "
                "detokenize, skip_reading_prefix_cache, extra_args)", "SamplingParams.clone()")),
    Seam("vllm.v1.engine.async_llm",
         reads={"AsyncLLM": "engine_core output_processor input_processor output_handler model_config vllm_config errored"},
         calls=("AsyncLLM.abort(request_id, *, internal)", "AsyncLLM.collective_rpc(method, *, args)",
                "AsyncLLM.get_supported_tasks()", "AsyncLLM.get_tokenizer()", "AsyncLLM.shutdown(*, timeout)",
                "AsyncLLM.check_health()"),
         overrides=("AsyncLLM.generate(prompt, sampling_params, request_id, *, data_parallel_rank, **kwargs)",)),
    Seam("vllm.v1.engine.core_client", reads={"AsyncMPClient": "resources", "BackgroundResources": "engine_manager"},
         calls=("AsyncMPClient.call_utility_all_async(method, *args)",)),
    # of vLLM's engine, by its utility calls
    Seam("vllm.v1.engine.core", calls=("EngineCore.collective_rpc(method, timeout, args, kwargs)",)),
    Seam("vllm.v1.engine.utils", reads={"CoreEngineProcManager": "processes failed_proc_name"},
         calls=("CoreEngineProcManager.finished_procs()",)),
    Seam("vllm.v1.engine.input_processor", reads={"InputProcessor": "structured_outputs_config model_config"},
         calls=("InputProcessor.process_inputs(request_id, prompt, params, *, supported_tasks, lora_request, "
                "data_parallel_rank, priority)",)),
    Seam("vllm.v1.engine.output_processor", reads={"OutputProcessor": "request_states"},
         overrides=("OutputProcessor.add_request(request, prompt, parent_req, request_index, *args, **kwargs)",
                    "OutputProcessor.process_outputs(engine_core_outputs, *args, **kwargs)")),
    Seam("vllm.v1.serial_utils", calls=("MsgpackEncoder.encode(obj)",)),
    Seam("vllm.outputs",
         reads={"RequestOutput": "outputs prompt_logprobs",
                "CompletionOutput": "token_ids text finish_reason stop_reason logprobs"},
         calls=("RequestError(*, code, message)",)),
)  # fmt: skip

API = (*STARTUP, *HTTP, *ENGINE_CLIENT)
