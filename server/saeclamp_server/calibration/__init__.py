"""
The dose curve of a feature: how far it can be clamped, measured through a running server's public API.

    settings        how a run measures, and its defaults
    features        what is asked for: features, their scale, their words
    concept         the words and texts that tell whether an answer is about a feature
    prompts         the questions that are asked
    client          answers and their likelihood, over HTTP
    managed_server  a server for the time of the run
    text            what is counted in an answer
    metrics         answers against unsteered answers, with their bounds
    green_zone      from a curve to the strengths that work
    run             what is missing is asked for, and kept
    records         what is kept of a feature
    storage         the answers and the curves
    report          tables and progress

`saeclamp calibrate` is in `cli/calibrate.py`.
"""
