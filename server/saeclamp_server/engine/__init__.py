"""
The residual stream. Imports vllm.

A request's program, on its way through one step:

    scheduler    keys its blocks of the prefix cache; lets its tokens leave         block_keys, holding
    worker       loads SAEs and vectors, hooks the model's layers                   layers, vector_rows, kv_cache, seeds
    runner       maps the step's tokens to the programs of their requests           live, placed, mapping, watching
    filling      lays out on the device what every SAE and site is to do            slots, row_bank
    ops          reads activations, decides rules, edits the stream, counts         board, firings, ledger, probe
    stages       passes on to the next pipeline stage what was seen so far
    telling      sends what was seen along with the sampled tokens                  holding

Asked by our own endpoints: directions.

Before the server listens: settings, self_test, fit_check, trusted_labels. For CUDA graphs, not used yet: kernel.
"""
