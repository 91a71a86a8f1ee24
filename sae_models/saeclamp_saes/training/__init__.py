"""
Training an SAE on a model's residual stream. A run is a folder, and its life is read here from top to bottom:

    harvest_config.py  the documents, and the share of them that is kept; the model reads them in lm/harvest.py
    activations_store.py  vectors harvested once, for several runs
    mixing_buffer.py   vectors in a bounded, shuffled buffer, refilled as it is used up; on disk, in io/vector_files.py
    config.py          the training config; run_settings.py holds the run's folder, and how often it is saved
    architectures.py   the kinds of SAE, in one table; activation_functions.py and losses.py hold their parts
    training_sae.py, trainer.py, loop.py, checkpoint.py   parameters, one step, all steps, and a file to resume from
    batchtopk_threshold.py  one threshold in place of a choice within the batch
    held_out.py, export.py  metrics on held-out vectors, and the files that are served
    run.py             a whole run, and resuming after an interruption
"""
