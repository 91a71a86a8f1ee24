"""
Published checkpoint layouts, one a file. Each is recognised by its content and read into the canonical SAE.

A layout's module has NAME, `matches(source)`, which looks at names, shapes and configuration, and `read(source)`, which
must also work when the tensors have shapes but no numbers (`source.shapes_only`).
"""

from saeclamp_saes.errors import CheckpointError, PickledError
from saeclamp_saes.loaders.detect import FORMATS, CheckpointSummary, Loader, detect, read_sae, read_source, summarize

__all__ = [
    "FORMATS",
    "CheckpointError",
    "CheckpointSummary",
    "Loader",
    "PickledError",
    "detect",
    "read_sae",
    "read_source",
    "summarize",
]
