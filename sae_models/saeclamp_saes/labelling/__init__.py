"""
What an SAE's features do, measured and told in words that can be checked. Labelling is read here from top to bottom:

    run.py               all of it, and going on after an interruption; column_store.py keeps what each step has
    activation_index.py  the model reads documents, and which feature is active on which token is kept on disk, by feature
    output_scores.py     what a feature does to the next token: logit lens (lm/logit_lens.py) and output score
    neighbours.py        decoder rows that point the same way
    token_labels.py      labels that counting can belie, and their scores
    examples.py          pieces of text, from the strongest activations to the weakest
    feature_rows.py      all that, as a feature's row
    table.py             the file of rows, which belongs to one decoder; label_file.py reads single ones
    neuronpedia.py, explain/   explanations in prose, put into that file afterwards
"""
