"""
EngineCore process: bounds on grammars of structured outputs, so that no request's grammar holds up the steps of all.

vLLM works out between two steps which tokens a grammar allows next, while every request waits: a regular expression of some
hundred characters can need minutes for each token. So a grammar is tried before it is let in, in a process of its own that
is killed when its time is over, because a thread within a library cannot be killed; and it is watched while it is used.
"""

from __future__ import annotations

import hashlib
import os
import random
import resource
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil
import torch
from vllm.logger import init_logger

logger = init_logger(__name__)

TRIED = 8
"""Tokens that a trial generates at random."""
FAR_TOO_LONG = 4
"""Multiple of a token's time after which a running request is ended; more than 1, as a busy machine may take longer once."""
NUM_KNOWN = 1024
"""Number of grammars that are remembered as passed, and need no further trial."""

BECAME_TOO_SLOW = "The grammar has become too slow; the request ends."

_TOO_SLOW = 3
"""Exit status of a trial whose grammar is too slow, or too large."""


@dataclass(frozen=True)
class GrammarLimits:
    """Bounds on a grammar; times are of the processor but for `stuck_s`."""

    compile_s: float = 10
    """Seconds that compiling it may take."""
    stuck_s: float = 60
    """Seconds after which a trial is ended that uses no processor time, but waits for something."""
    max_token_s: float = 0.25
    """Seconds that each token may take."""
    max_memory: int = 1 << 30
    """Bytes of memory that a trial may take."""


LIMITS = GrammarLimits()

Create = Callable[[Any], Any]
"""Function from vLLM's request to its compiled grammar."""


class GrammarTooSlowError(ValueError):
    """The grammar would hold up other requests."""


def limit_grammars(manager: Any, fail: Callable[[str], None], limits: GrammarLimits = LIMITS) -> None:
    """
    Have vLLM's manager of structured outputs try each grammar first, and watch it afterwards.

    fail: called with the id of a running request whose grammar has become too slow
    """
    create, known = manager._create_grammar, dict[bytes, None]()

    def limited(request: Any) -> Any:
        # vLLM calls this in threads of a pool, so a trial holds up no step, and several may run at once
        kind, text = request.structured_output_request.structured_output_key
        # hashed, because a grammar may be large; and a text may hold lone surrogates, which UTF-8 has no bytes for
        key = hashlib.sha256(f"{kind} {text}".encode("utf-8", "surrogatepass")).digest()
        if key not in known:
            try_grammar(lambda: create(request), lambda: manager.backend.allocate_token_bitmask(1), limits)
            known[key] = None
            while len(known) > NUM_KNOWN:
                known.pop(next(iter(known)), None)  # another thread may have been faster
        grammar = create(request)
        grammar.fill_bitmask = _timed(grammar.fill_bitmask, request.request_id, fail, limits)
        grammar.accept_tokens = _timed(grammar.accept_tokens, request.request_id, fail, limits)
        return grammar

    manager._create_grammar = limited


def try_grammar(
    create: Callable[[], Any], allocate: Callable[[], torch.Tensor], limits: GrammarLimits = LIMITS
) -> None:
    """
    Compile a grammar and generate some tokens, in a process of its own. Errors in the grammar are left to its real use.

    create:   compiles the grammar
    allocate: makes a mask of one row, a bit for each token
    Raises GrammarTooSlowError.
    """
    # forked, not spawned: `create` needs vLLM's backend, which this process alone has
    child = os.fork()
    if child == 0:
        _walk_and_leave(create, allocate, limits)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == _TOO_SLOW:
        raise GrammarTooSlowError(
            f"This grammar is too slow: others would wait for it. Compiling it may take {limits.compile_s:g} s, "
            f"and {limits.max_memory >> 30} GiB, and what may come next {limits.max_token_s} s at each token."
        )


def _walk_and_leave(create: Callable[[], Any], allocate: Callable[[], torch.Tensor], limits: GrammarLimits) -> None:
    """Run the trial and end this process: by itself, by a timer's signal, or for want of memory."""
    status = 0
    try:
        # the default action is the kernel's: a handler of Python's would wait until the library returns
        for number in (signal.SIGPROF, signal.SIGALRM):
            signal.signal(number, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_PROF, limits.compile_s)
        signal.setitimer(signal.ITIMER_REAL, limits.stuck_s)
        # beyond what the fork has inherited, which counts as this process's own
        taken = psutil.Process().memory_info().data
        resource.setrlimit(resource.RLIMIT_DATA, (taken + limits.max_memory, taken + limits.max_memory))
        os.closerange(3, 1 << 16)  # what is closed elsewhere meanwhile must not stay open here
        status = _TOO_SLOW if _is_slow(create(), allocate(), limits.max_token_s) else 0
    except MemoryError:
        status = _TOO_SLOW
    finally:
        # whatever else went wrong: a grammar's own faults are told by the real compilation, in words. `_exit`, because the
        # engine's exit handlers are not this process's to run
        os._exit(status)


def _is_slow(grammar: Any, mask: torch.Tensor, max_token_s: float) -> bool:
    """Tell whether compiling is over in time and a token is not: generate tokens that the grammar allows, at random."""
    # seeded: a grammar that is tried again is walked along the same tokens
    chance = random.Random(0)
    for _ in range(TRIED):
        # a token that never ends is ended by the timer; one that is merely slow, by the clock below
        signal.setitimer(signal.ITIMER_PROF, FAR_TOO_LONG * max_token_s)
        began = time.thread_time()
        grammar.fill_bitmask(mask, 0)
        allowed = _set_bits(mask[0])
        if not allowed or grammar.is_terminated():
            return False
        accepted = grammar.accept_tokens("trial", [chance.choice(allowed)])
        if time.thread_time() - began > max_token_s:
            return True
        if not accepted or grammar.is_terminated():
            return False
    return False


def _set_bits(words: torch.Tensor) -> list[int]:
    """
    List the numbers of the bits that are set in (num_words,) int32; the lowest bit of the first word is number 0.

    In numpy, because torch would wait for threads that a forked process does not have.
    """
    bits = np.unpackbits(words.numpy().view(np.uint8), bitorder="little")
    numbers: list[int] = np.flatnonzero(bits).tolist()
    return numbers


def _timed(
    call: Callable[..., Any], request_id: str, fail: Callable[[str], None], limits: GrammarLimits
) -> Callable[..., Any]:
    def timed(*args: Any) -> Any:
        # of this thread alone: what other threads do meanwhile is not the grammar's doing
        began = time.thread_time()
        result = call(*args)
        if time.thread_time() - began > FAR_TOO_LONG * limits.max_token_s:
            logger.warning("Request %s: %s", request_id, BECAME_TOO_SLOW)
            fail(request_id)
        return result

    return timed
