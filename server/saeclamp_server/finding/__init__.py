"""
Finding features by what the model itself does with a text, through the engine's own readout.

    reading.py     the activations in a text, token by token
    inspection.py  which features are active in it
    contrast.py    which features tell two sets of texts apart, and how surely; significance.py judges
    attribution.py which features caused a token
    neighbours.py  which decoder rows point the same way
    suggestion.py  from a wish to a steering that was tested: ideas.py thinks of features, trials.py asks the model,
                   screening.py chooses what is tested, superiority.py judges, verdict.py says what was found
"""
