"""The language model outside of vLLM: loading it, reading its vectors, and the texts that it reads."""
