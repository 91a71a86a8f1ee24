"""Sparse autoencoders for serving: read published checkpoints exactly, and the maths of clamping. No serving here."""

from saeclamp_saes.formats import read_sae
from saeclamp_saes.library import SAEEntry, SAELibraryError, find_sae, open_entry
from saeclamp_saes.sae import SAE, Site

__all__ = ["SAE", "SAEEntry", "SAELibraryError", "Site", "find_sae", "open_entry", "read_sae"]
