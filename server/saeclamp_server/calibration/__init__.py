"""
The dose curve of a feature: how far it can be clamped, measured through a running server's public API.

    settings        settings of a run, and their defaults
    features        the features to calibrate, their maximum activations and concepts
    concept         the words and texts that tell whether an answer is about a feature
    prompts         the prompts that are asked
    client          answers and their likelihood, over HTTP
    managed_server  a server for the time of the run
    text_metrics    metrics of one text: words of a concept, bigrams, repetition
    metrics         metrics of answers against unsteered answers, with their bounds
    green_zone      from a curve to the strengths that work
    run             the run: asks for missing answers, and stores them
    records         the stored record of a calibrated feature
    storage         files of answers and curves
    report          tables and progress

`saeclamp calibrate` is in `cli/calibrate.py`.
"""
