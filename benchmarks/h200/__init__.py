"""
The engine's kernels on one card, in the minutes for which such a machine is lent.

    __main__.py      runs the parts, each in a process of its own; keeps results as they come, renders them
    rates.py         versions, bandwidth, matrix rate
    parity.py        kernels against the slow twin
    capture.py       graphs that are captured once and replayed with other contents; where the host waits
    decode.py        32 layers of an 8B shape in one graph, with and without the op           model
    prefill.py       long prompts, with peak memory
    queue_loop.py    steps enqueued two deep, as vLLM does: how long the card is idle between them
    compiled.py      the op inside torch.compile: no copy beside it
    tools.py         compute-sanitizer and ncu, where they are there                          small_case

Shared: device (a card, or its stand-in), tables (the worker's, without a worker), record, bare_imports, report.
"""
