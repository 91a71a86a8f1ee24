"""The residual stream: hooks, the op, which token runs which program. Imports vllm."""
