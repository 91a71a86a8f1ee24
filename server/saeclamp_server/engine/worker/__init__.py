"""
Worker process: the model, the SAEs and the edits.

A step, from top to bottom:

    worker.py            loads SAEs and vectors, hooks the model's layers       cpu_worker, gpu_worker, hooks, vector_bank
    model_runner.py      wraps vLLM's runner: what happens before and behind each forward
    request_states.py    requests that run, each with its compiled program      compiled_program, slot_pool
    step_plan.py         tokens of the step to the programs of their requests   read_plan
    step_inputs.py       what every SAE and site is to do, on the device        row_cache
    ops.py               reads activations, decides rules, edits, counts        rule_state, edit_stats, recorder
    step_outputs.py      what was seen, on the device                           pipeline, for the next pipeline stage
    collect.py           what was seen, told to the scheduler with the tokens

Asked by our own endpoints: decoder_queries, prompt_means. Around vLLM: kv_wipe, cpu_seed_fix.
For CUDA graphs, not used yet: kernel.
"""
