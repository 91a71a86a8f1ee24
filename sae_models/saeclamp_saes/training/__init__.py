"""
Training an SAE on a model's residual stream. A run is a folder, and its life is read here from top to bottom:

    harvest_config.py  which documents, and what of them is kept; the model reads them in lm/harvest.py
    activations_store.py  vectors harvested once, for several runs
    mixing_buffer.py   a bounded, shuffled pool that is refilled as it is used up; on disk, in io/vector_files.py
    config.py          what is trained, and how; run_settings.py says where and how often it is saved
    architectures.py   the kinds of SAE, in one table; activation_functions.py and losses.py hold their parts
    training_sae.py, trainer.py, loop.py, checkpoint.py   parameters, one step, all of them, and a file to go on from
    batchtopk_threshold.py  one threshold in place of a choice within the batch
    held_out.py, export.py  figures on held-out vectors, and the files that are served
    run.py             all of it, and going on after an interruption
"""
