"""
Trying a steering before it is put to use.

    validation.py  what it would do, without running anything
    comparison.py  what it does, beside unsteered and prompted answers; divergence.py measures how far they are apart
"""
