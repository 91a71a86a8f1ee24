"""
Checks that vLLM makes only when an answer has begun, made before.

A stream's status has left by then, and its client would get 200, and the error as an event.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vllm.exceptions import VLLMClientError, VLLMValidationError
from vllm.v1.serial_utils import MsgpackEncoder

from saeclamp_server.vllm_compat import raise_of_failed_grammar

REFUSED = (VLLMClientError, ValueError, TypeError, OverflowError)
"""Exceptions by which vLLM says that a request is at fault; some are older than its own error classes."""


class InvalidParameterError(VLLMValidationError):
    """A refusal of vLLM's, which its handlers of every endpoint turn into a 400."""

    def __str__(self) -> str:
        return str(self.args[0])  # vLLM's own adds the value, however long


async def check_before_answers(state: Any, engine: Any) -> None:
    """
    Check what is asked of the engine where vLLM's handlers ask, instead of when the first token is fetched.

    state: vLLM's app state
    """
    check = _Check(engine, await engine.get_supported_tasks())
    engine.generate = check.before(engine.generate)
    responses = state.openai_serving_responses
    if responses is not None:  # it asks within the stream
        name = "_generate_with_builtin_tools"
        setattr(responses, name, check.before(getattr(responses, name)))


class _Check:
    def __init__(self, engine: Any, tasks: tuple[str, ...]) -> None:
        self._processor, self._tasks = engine.input_processor, tasks
        self._encoder = MsgpackEncoder()
        self._pin_structured_outputs()

    def _pin_structured_outputs(self) -> None:
        """
        Have all requests use one library for structured outputs.

        By default vLLM chooses by what a request asks for, but the engine keeps the one that its first request chose: what
        only another one supports was a 500, or not, depending on who had come first.
        """
        config = self._processor.structured_outputs_config
        # with Mistral's tokenizers vLLM must choose, because their tools' grammars go to another library
        if config.backend == "auto" and self._processor.model_config.tokenizer_mode != "mistral":
            config.backend = "xgrammar"

    def before(self, generate: Callable[..., Any]) -> Callable[..., Any]:
        """Make `generate` check its prompt and parameters when it is called."""

        def checked(*args: Any, **kwargs: Any) -> Any:
            prompt, params = (
                args[place] if len(args) > place else next(kwargs[name] for name in names if name in kwargs)
                for place, names in enumerate((("prompt", "engine_input"), ("sampling_params", "params")))
            )
            if isinstance(prompt, dict) and "type" in prompt:  # else it is ours, and no stream
                self._check(prompt, params, kwargs)
                if getattr(params, "structured_outputs", None) is not None:
                    return raise_of_failed_grammar(generate(*args, **kwargs), _failed_grammar)
            return generate(*args, **kwargs)

        return checked

    def _check(self, prompt: Any, params: Any, asked: dict[str, Any]) -> None:
        """Raise InvalidParameterError for what vLLM would refuse."""
        try:
            self._process(prompt, params, asked)
        except OverflowError as exc:
            name = next((name for name in params.__struct_fields__ if _is_huge(getattr(params, name))), None)
            raise InvalidParameterError(f"{name or 'A number'} does not fit into 64 bits.", parameter=name) from exc
        except REFUSED as exc:
            message = str(exc.args[0]) if exc.args else str(exc)
            raise InvalidParameterError(message, parameter=self._parameter(exc, prompt, params, asked)) from exc

    def _process(self, prompt: Any, params: Any, asked: dict[str, Any]) -> None:
        passed = {name: asked[name] for name in ("lora_request", "data_parallel_rank", "priority") if name in asked}
        request = self._processor.process_inputs("check", prompt, params, supported_tasks=self._tasks, **passed)
        self._encoder.encode(request.sampling_params)  # no integer beyond 64 bits reaches the engine

    def _parameter(self, exc: Exception, prompt: Any, params: Any, asked: dict[str, Any]) -> str | None:
        named: str | None = getattr(exc, "parameter", None)
        if named is not None or params.structured_outputs is None:
            return named
        without = params.clone()
        without.structured_outputs = None
        try:
            self._process(prompt, without, asked)
        except REFUSED:
            return None
        return "structured_outputs"


TOO_SLOW = (
    "The grammar is too slow, so that others would wait for it, or it cannot be compiled: it must be compiled and allow its "
    "first tokens within some seconds; see the server's log. Write it with fewer alternatives that begin alike, and fewer "
    "repetitions within repetitions."
)


def _failed_grammar(reason: str | None) -> Exception:
    """Say why the engine has not let a request in, or has ended it: of itself vLLM says 'internal server error'."""
    return InvalidParameterError(reason or TOO_SLOW, parameter="structured_outputs")


def _is_huge(value: Any) -> bool:
    return isinstance(value, int) and not -(2**63) <= value < 2**64
