"""
Finding features by what the model itself does with a text, through the engine's own readout.

    reading.py     the activations in a text, token by token
    inspection.py  which features are active in it
    contrast.py    which features tell two sets of texts apart, and how surely; significance.py judges
    attribution.py which features caused a token
    neighbours.py  which decoder rows point the same way
    suggestion.py  from a wish to a steering that was tried
"""
