"""From API process to workers, at the start: their configuration."""

from __future__ import annotations

CONFIG_KEY = "saeclamp"
"""Where it rides in `VllmConfig.additional_config`, which vLLM hashes into its compile-cache key."""
