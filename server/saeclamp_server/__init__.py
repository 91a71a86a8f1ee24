"""The server: vLLM plus per-request edits of the residual stream."""
