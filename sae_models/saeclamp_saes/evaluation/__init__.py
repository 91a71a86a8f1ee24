"""
Does an SAE fit a model, and what does it do there?

    metrics interpretations threshold   what is measured, and the ways in which a checkpoint may be meant to be applied
    quick_check                         on a few hundred vectors, when a server starts
    verify report                       `saeclamp sae verify`: which interpretation holds, at which site
    evaluate eval_data running_sums accumulators measurement   `saeclamp measure`: on as many tokens as there are, in memory
                                        that does not grow with them
    histograms plots                    what is drawn of it
"""
