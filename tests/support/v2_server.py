"""
`saeclamp serve` in vLLM's V2 model runner, on a CPU: its Triton kernels run in Triton's interpreter.

vLLM takes Triton only where there is a driver, so it is shown one that does nothing. This file must come before anything
that imports either; see `V2_NURSERY`.
"""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

os.environ |= {"TRITON_INTERPRET": "1", "VLLM_USE_V2_MODEL_RUNNER": "1", "VLLM_WORKER_MULTIPROC_METHOD": "spawn"}

from triton.backends import backends

backends["cpu"] = SimpleNamespace(driver=SimpleNamespace(is_active=lambda: True), compiler=None)

from triton.runtime.interpreter import InterpreterBuilder  # noqa: E402

masked_load = InterpreterBuilder.create_masked_load


def load_by_any_mask(self: Any, pointers: Any, mask: Any, *args: Any) -> Any:
    """Load as compiled kernels do; the interpreter takes no mask of integers, as those of vLLM's n-gram kernel become."""
    mask.data = mask.data.astype(bool)
    return masked_load(self, pointers, mask, *args)


InterpreterBuilder.create_masked_load = load_by_any_mask
from tests.support.triton_interpreter import (  # noqa: E402
    patch_the_language_once_a_launch,
    take_vocabularies_whole,
)
from vllm.v1.worker.gpu.sample import logprob  # noqa: E402

import saeclamp_server.startup.vllm_settings as settings  # noqa: E402
from saeclamp_server.__main__ import main  # noqa: E402

settings.prepare_environment = lambda: None
patch_the_language_once_a_launch()
take_vocabularies_whole(logprob)

if __name__ == "__main__":
    main()
