"""These tests on a vLLM for whose Python files there is no build for CPUs: `make test-next`."""
