"""
What an SAE's features do, measured and told in words that can be checked. Labelling is read here from top to bottom:

    label.py       all of it, and going on after an interruption; columns.py keeps what each step has
    firings.py     the model reads documents, and which feature is active on which token is kept on disk, by feature
    outputs.py     what a feature does to the next token: logit lens (lens.py) and output score
    neighbours.py  decoder rows that point the same way
    typed.py       labels that counting can belie, and their scores
    examples.py    pieces of text, from the strongest activations to the weakest
    rows.py        all that, as a feature's row
    table.py       the file of rows, which belongs to one decoder; open_table.py reads single ones
    neuronpedia.py, explain.py   explanations in prose, put into that file afterwards
"""
