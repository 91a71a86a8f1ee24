"""
Worker process: the model, the SAEs and the edits.

What a request asks for is written into tables on the model's device once, when it comes. Nothing is computed on the host
from step to step; the op of each hooked layer finds in the tables what to do at each token.

    worker.py            loads SAEs and vectors, hooks the model's layers       cpu_worker, gpu_worker, hooks, vector_bank
    v1_model_runner.py   wraps methods of vLLM's V1 runner, before and behind each forward; v2_model_runner.py those of V2
    steered_steps.py     what is done in each step, whichever runner runs it
    request_states.py    running requests, each with its compiled program       compiled_program, feature_row_cache
    program_tables.py    a program's edits, reads and rules, and what is counted of them        program_layout
    step_tables.py       each token's program, and what was read and done at it
    ops.py               the op: what only looks, then the executor             vector_recorder, prompt_means, top_features
    torch_executor.py    reads activations, judges rules, edits, counts         site_vectors, token_pairs, conditions
    triton_executor.py   the same by kernels, for GPUs       triton_kernels, judge_kernel, kernel_parts, step_end_kernels
    draft_settlement.py  which of several tokens sampled at once stay, on the device        sampled_tokens
    steering_report.py   what requests that have ended are reported to have done
    report_builder.py    what a step showed, sent with the tokens               readout_plan
    device_copies.py     all copies between host and device; none of them makes the host wait
    pipeline_parallel.py sends what was read to the next stage

For our own endpoints: decoder_queries, prompt_means. Work-arounds for vLLM: kv_wipe, cpu_seed_fix, cpu_draft_fix.

Words: a read is an activation that a rule or a readout needs. A verdict says whether a rule's condition holds at a token. An
item is an edit of a token that was made. A slice is the tokens of one request in a step.
"""
