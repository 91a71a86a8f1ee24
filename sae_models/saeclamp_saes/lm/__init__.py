"""The language model outside of vLLM: loading it, capturing its activations, and the texts that it reads."""
