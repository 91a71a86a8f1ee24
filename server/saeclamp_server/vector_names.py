"""How steering programs name uploaded vectors beside SAEs."""

from __future__ import annotations

VECTOR = "vector:"
"""What the name of an uploaded vector follows where an edit names it in place of an SAE; its index is 0."""
