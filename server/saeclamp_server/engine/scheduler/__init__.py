"""
EngineCore process: saeclamp's additions to vLLM's scheduler.

    scheduler.py       the scheduler class; ends requests that cannot be steered, or that a rule ends
    prefix_cache.py    hashes of KV blocks, by which steered requests share those that were computed under the same edits
    output_gate.py     generated tokens that wait until the model has read them
    tainted_blocks.py  KV blocks of failed requests, until they are wiped
    grammar_limits.py  grammars of structured outputs that would hold up all requests
"""
