"""
Labelling an SAE's features: measuring them, and labels that can be checked. It is read here from top to bottom:

    run.py               all steps, and resuming after an interruption; column_store.py keeps each step's rows
    activation_index.py  the model reads documents, and features' activations with their tokens are kept on disk, by feature
    output_scores.py     a feature's effect on the next token: logit lens (lm/logit_lens.py) and output score
    neighbours.py        decoder rows that point the same way
    token_labels.py      labels that counting can refute, and their scores
    examples.py          pieces of text, from the strongest activations to the weakest
    feature_rows.py      all of it, as a feature's row
    table.py             the file of rows, which belongs to one decoder; label_file.py reads single ones
    neuronpedia.py, explain/   explanations in prose, put into that file afterwards
"""
