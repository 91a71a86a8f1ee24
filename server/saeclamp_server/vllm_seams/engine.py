"""Seams of the processes of the engine: the scheduler, the workers, and both model runners."""

from __future__ import annotations

from saeclamp_server.vllm_seams.seam import Seam


def _scheduler(module: str, kind: str) -> Seam:
    return Seam(
        module,
        reads={
            kind: "requests kv_cache_manager structured_output_manager sched_step_seq processed_step_seq defer_block_free"
        },
        calls=(
            f"{kind}.finish_requests(request_ids, finished_status)",
            f"{kind}._request_blocks_can_be_freed(request)",
        ),
        overrides=(
            f"{kind}.add_request(request)",
            f"{kind}.schedule(*args, **kwargs)",
            f"{kind}.update_from_output(scheduler_output, model_runner_output)",
            f"{kind}._free_request_blocks(request)",
            f"{kind}._drain_deferred_frees()",
        ),
        types={f"{kind}.grammar_compile_error_reqs": ("set[str]", "dict[str, RequestError]")},
    )


SCHEDULER = (
    Seam("vllm.v1.core.sched.scheduler", overrides=("Scheduler.__init__(*args, block_size, hash_block_size, **kwargs)",)),
    _scheduler("vllm.v1.core.sched.scheduler", "Scheduler"),
    _scheduler("vllm.v1.core.sched.async_scheduler", "AsyncScheduler"),
    Seam("vllm.v1.core.sched.output",
         reads={"SchedulerOutput": "scheduled_new_reqs scheduled_spec_decode_tokens finished_req_ids preempted_req_ids",
                "NewRequestData": "req_id sampling_params prompt_token_ids prefill_token_ids prompt_len"}),
    Seam("vllm.v1.engine",
         reads={"EngineCoreOutput": "request_id new_token_ids new_logprobs new_prompt_logprobs_tensors prefill_stats events "
                "finish_reason stop_reason kv_transfer_params finished", "EngineCoreOutputs": "outputs",
                "EngineCoreRequest": "request_id sampling_params prompt_token_ids", "FinishReason": "STOP LENGTH"},
         calls=("EngineCoreOutput(*, request_id, new_token_ids)",)),
    Seam("vllm.v1.outputs",
         reads={"ModelRunnerOutput": "sampled_token_ids req_id_to_index"},
         # all of its fields, in this order
         calls=("LogprobsLists(logprob_token_ids, logprobs, sampled_token_ranks, cu_num_generated_tokens)",),
         overrides=("AsyncModelRunnerOutput.get_output()",)),
    Seam("vllm.v1.request",
         reads={"Request": "request_id sampling_params num_prompt_tokens max_tokens client_index cache_salt block_hashes "
                "_block_hasher structured_output_request", "RequestStatus": "FINISHED_STOPPED"},
         calls=("Request.update_block_hashes()",)),
    Seam("vllm.v1.core.kv_cache_manager", reads={"KVCacheManager": "block_pool"},
         calls=("KVCacheManager.get_block_ids(request_id)", "KVCacheManager.evict_blocks(block_ids)")),
    Seam("vllm.v1.core.block_pool", reads={"BlockPool": "blocks"}),
    Seam("vllm.v1.core.kv_cache_utils", reads={"KVCacheBlock": "is_null ref_cnt"}),
    Seam("vllm.v1.structured_output", reads={"StructuredOutputManager": "backend"},
         overrides=("StructuredOutputManager._create_grammar(request)",)),
    Seam("vllm.v1.structured_output.request", reads={"StructuredOutputRequest": "structured_output_key"}),
    Seam("vllm.v1.structured_output.backend_types",
         calls=("StructuredOutputGrammar.is_terminated()", "StructuredOutputBackend.allocate_token_bitmask(max_num_seqs)",
                "StructuredOutputGrammar.fill_bitmask(bitmask, batch_index)",
                "StructuredOutputGrammar.accept_tokens(request_id, tokens)"),
         overrides=("StructuredOutputGrammar.fill_bitmask(*args)", "StructuredOutputGrammar.accept_tokens(*args)")),
    Seam("vllm.logger", calls=("init_logger(name)",)),
)  # fmt: skip

WORKER = (
    Seam("vllm.distributed", names="get_pp_group"),
    Seam("vllm.distributed.parallel_state",
         reads={"GroupCoordinator": "is_first_rank is_last_rank world_size cpu_group"}),
    Seam("vllm.utils.torch_utils",
         calls=("direct_register_custom_op(op_name, op_func, *, mutates_args, fake_impl)",)),
    Seam("vllm.model_executor.models.utils", names="PPMissingLayer"),
    Seam("vllm.sequence", reads={"IntermediateTensors": "tensors"}),
    Seam("vllm.v1.kv_cache_interface", reads={"KVCacheConfig": "num_blocks"}),
    Seam("vllm.v1.worker.gpu_worker",
         reads={"Worker": "vllm_config model_runner use_v2_model_runner device"},
         overrides=("Worker.__init__(*args, **kwargs)", "Worker.load_model(*args, **kwargs)")),
    # imported on every machine
    Seam("vllm.v1.worker.gpu.model_runner", names="dispatch_cg_and_sync_dp"),
)  # fmt: skip

V1_RUNNER = (
    Seam("vllm.v1.worker.cpu_worker",
         overrides=("CPUWorker.__init__(*args, **kwargs)", "CPUWorker.load_model(*args, **kwargs)")),
    Seam("vllm.v1.worker.gpu_model_runner",
         reads={"GPUModelRunner": "requests input_batch query_start_loc positions input_ids speculative_config "
                "execute_model_state device dtype kv_cache_config kv_caches intermediate_tensors max_num_tokens "
                "discard_request_mask", "ExecuteModelState": "hidden_states"},
         calls=("GPUModelRunner.get_model()",),
         overrides=(
             "GPUModelRunner._update_states(scheduler_output)",
             "GPUModelRunner._prepare_inputs(scheduler_output, num_scheduled_tokens)",
             "GPUModelRunner.execute_model(*args, **kwargs)",
             "GPUModelRunner.sample_tokens(grammar_output)",
             "GPUModelRunner.sync_and_gather_intermediate_tensors(num_tokens, intermediate_tensors, *args)",
             "GPUModelRunner._dummy_run(*args, is_profile, **kwargs)",
             "GPUModelRunner._bookkeeping_sync(scheduler_output, *args)",
             "GPUModelRunner._sample(*args)",
         )),
    Seam("vllm.v1.worker.gpu_input_batch",
         reads={"InputBatch": "req_ids req_id_to_index num_reqs num_computed_tokens_cpu generators",
                "CachedRequestState": "sampling_params prompt_token_ids output_token_ids"}),
    Seam("vllm.v1.sample.rejection_sampler",
         overrides=("expand_batch_to_tokens(x, cu_num_tokens, num_tokens, replace_from, replace_to)",)),
    Seam("vllm.v1.utils", reads={"CpuGpuBuffer": "gpu np"}),
    Seam("vllm.sampling_params", reads={"SamplingParams": "all_stop_token_ids max_tokens"}),
)  # fmt: skip

V2_RUNNER = (
    Seam("vllm.v1.worker.gpu.model_runner",
         reads={"GPUModelRunner": "model_state speculative_config is_first_pp_rank is_last_pp_rank device "
                "execute_model_state kv_cache_config kv_caches req_states", "ExecuteModelState": "hidden_states"},
         calls=("GPUModelRunner.get_model()",),
         overrides=(
             "GPUModelRunner.finish_requests(scheduler_output)",
             "GPUModelRunner.add_requests(scheduler_output)",
             "GPUModelRunner.execute_model(*args, **kwargs)",
             "GPUModelRunner.postprocess_sampled(idx_mapping, sampled_tokens, num_sampled, *args, **kwargs)",
             "GPUModelRunner.sample_tokens(grammar_output)",
             "GPUModelRunner._dummy_run(*args, is_profile, **kwargs)",
             "dispatch_cg_and_sync_dp(*args, need_eager, **kwargs)",
         )),
    Seam("vllm.v1.worker.gpu.model_states.interface",
         overrides=("ModelState.preprocess_state(input_batch, *args)",)),
    Seam("vllm.v1.worker.gpu.states", reads={"RequestState": "num_computed_tokens"}),
    Seam("vllm.v1.worker.gpu.input_batch",
         reads={"InputBatch": "req_ids num_reqs num_scheduled_tokens num_computed_tokens_np query_start_loc positions "
                "input_ids"}),
)  # fmt: skip
