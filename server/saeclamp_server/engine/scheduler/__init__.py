"""
EngineCore process: what saeclamp adds to vLLM's scheduler.

    scheduler.py       the scheduler class; ends requests that cannot be steered, or that a rule ends
    prefix_cache.py    which KV blocks steered requests may share
    output_gate.py     tokens that wait until a rule has read them
    tainted_blocks.py  KV blocks of failed requests, until they are wiped
    grammar_limits.py  grammars of structured outputs that would hold up all requests
"""
