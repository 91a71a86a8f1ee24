"""
Measuring an SAE on a model: whether it fits, and its fidelity, sparsity and densities.

    metrics interpretations threshold   the metrics, and the ways in which a checkpoint may be meant to be applied
    quick_check                         on a few hundred vectors, when a server starts
    verify report                       `saeclamp sae verify`: the interpretation that holds, and the site
    evaluate eval_data running_sums accumulators measurement   `saeclamp measure`: on as many tokens as there are, in memory
                                        that does not grow with them
    histograms plots                    figures for a paper
"""
