"""EngineCore process."""
