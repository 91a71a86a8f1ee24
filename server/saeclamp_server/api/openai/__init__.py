"""vLLM's OpenAI endpoints with `steering`. Imports vllm."""
