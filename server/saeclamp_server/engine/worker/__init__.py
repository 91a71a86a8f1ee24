"""
Worker process: the model, the SAEs and the edits.

A step, from top to bottom, with the modules that take part:

    worker.py            loads SAEs and vectors, hooks the model's layers       cpu_worker, gpu_worker, hooks, vector_bank
    model_runner.py      wraps methods of vLLM's V1 runner, before and behind each forward
    request_states.py    running requests, each with its compiled program       compiled_program, slot_pool
    step_plan.py         (token, edit) and (token, read) pairs of the step      read_plan
    step_inputs.py       the pairs as tensors on the device, by SAE and site    feature_row_cache
    ops.py               reads activations, evaluates rules, edits, counts      rule_state, edit_stats, vector_recorder
    step_outputs.py      activations, verdicts and items, on the device         pipeline_parallel, for the next stage
    report_builder.py    step outputs as step reports, sent with the tokens

For our own endpoints: decoder_queries, prompt_means. Work-arounds for vLLM: kv_wipe, cpu_seed_fix.
For CUDA graphs, not used yet: kernel.

Words: a slice is the rows of one request in a step. A read is an activation that a rule or a readout needs. A verdict says
whether a rule holds at a token. An item is an edit of a token that the answer shows. A slot is a row of counts on the device
that belongs to one edit or rule of one request.
"""
