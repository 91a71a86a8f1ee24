"""From API process to workers, at the start: the key of their configuration."""

from __future__ import annotations

CONFIG_KEY = "saeclamp"
"""
Key of the workers' configuration in `VllmConfig.additional_config`.

vLLM hashes that into its compile-cache key, so a graph that was compiled with other hooks is not taken from the cache.
"""
