"""Trying a steering before it is put to use: `validate` runs nothing, `compare` answers with it and without."""
