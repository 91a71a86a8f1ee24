"""Our own endpoints, beside OpenAI's. Free of vLLM."""
