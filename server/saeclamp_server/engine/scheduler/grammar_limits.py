"""
EngineCore process: bounds on grammars of structured outputs, so that no request's grammar holds up the steps of all.

What a grammar allows next is worked out between two steps, while every request waits: a regular expression of some hundred
characters can need minutes for each token. So a grammar is tried before it is let in, in a process that is ended when its
time is over, because a thread within a library cannot be; and it is watched while it is used.
"""

from __future__ import annotations

import hashlib
import os
import random
import resource
import signal
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import psutil
import torch
from vllm.logger import init_logger

logger = init_logger(__name__)

COMPILE_S = 10
"""Seconds of processor time that compiling a grammar may take."""
STUCK_S = 60
"""After which a trial is ended that takes no time, but waits for something."""
TRIED = 8
"""Tokens of a trial."""
MAX_TOKEN_S = 0.25
"""Seconds of processor time that each token may take."""
FAR_TOO_LONG = 4
"""Times that, after which a request that runs is ended."""
MAX_MEMORY = 1 << 30
"""Bytes that a trial may take."""
NUM_KNOWN = 1024
"""Grammars that have passed and need no trial again."""

_TOO_SLOW = 3
"""Exit status of a trial."""

Create = Callable[[Any], Any]
"""From vLLM's request to its grammar, compiled."""


class GrammarTooSlowError(ValueError):
    """A grammar that would hold up others."""


def limit_grammars(manager: Any, fail: Callable[[str], None]) -> None:
    """
    Have vLLM's manager of structured outputs try each grammar first, and watch it afterwards.

    fail: is told the id of a running request whose grammar has become too slow
    """
    create, known = manager._create_grammar, dict[bytes, None]()

    def limited(request: Any) -> Any:
        kind, text = request.structured_output_request.structured_output_key
        key = hashlib.sha256(f"{kind} {text}".encode("utf-8", "surrogatepass")).digest()
        if key not in known:
            try_grammar(lambda: create(request), lambda: manager.backend.allocate_token_bitmask(1))
            known[key] = None
            while len(known) > NUM_KNOWN:
                known.pop(next(iter(known)), None)  # another thread may have been faster
        grammar = create(request)
        grammar.fill_bitmask = _timed(grammar.fill_bitmask, request.request_id, fail)
        grammar.accept_tokens = _timed(grammar.accept_tokens, request.request_id, fail)
        return grammar

    manager._create_grammar = limited


def try_grammar(create: Callable[[], Any], allocate: Callable[[], torch.Tensor]) -> None:
    """
    Compile a grammar and walk some tokens in a process of its own. What is wrong with the grammar shows when it is used.

    create:   compiles it
    allocate: makes a mask of one row, a bit for each token
    Raises GrammarTooSlowError.
    """
    child = os.fork()
    if child == 0:
        _walk_and_leave(create, allocate)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == _TOO_SLOW:
        raise GrammarTooSlowError(
            f"This grammar is too slow: others would wait for it. Compiling it may take {COMPILE_S} s, and "
            f"{MAX_MEMORY >> 30} GiB, and what may come next {MAX_TOKEN_S} s at each token."
        )


def _walk_and_leave(create: Callable[[], Any], allocate: Callable[[], torch.Tensor]) -> None:
    """End this process: by itself, by the alarm, which no library holds up, or for want of memory."""
    status = 0
    try:
        for number in (signal.SIGPROF, signal.SIGALRM):
            signal.signal(number, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_PROF, COMPILE_S)
        signal.setitimer(signal.ITIMER_REAL, STUCK_S)
        taken = psutil.Process().memory_info().data
        resource.setrlimit(resource.RLIMIT_DATA, (taken + MAX_MEMORY, taken + MAX_MEMORY))
        os.closerange(3, 1 << 16)  # what is closed elsewhere meanwhile must not stay open here
        status = _TOO_SLOW if _is_slow(create(), allocate()) else 0
    except MemoryError:
        status = _TOO_SLOW
    finally:
        os._exit(status)  # whatever else went wrong: of a grammar's own faults the real compilation tells, in words


def _is_slow(grammar: Any, mask: torch.Tensor) -> bool:
    """Walk along tokens that the grammar allows."""
    chance = random.Random(0)
    for _ in range(TRIED):
        signal.setitimer(signal.ITIMER_PROF, FAR_TOO_LONG * MAX_TOKEN_S)
        began = time.thread_time()
        grammar.fill_bitmask(mask, 0)
        allowed = _set_bits(mask[0])
        if not allowed or grammar.is_terminated():
            return False
        accepted = grammar.accept_tokens("trial", [chance.choice(allowed)])
        if time.thread_time() - began > MAX_TOKEN_S:
            return True
        if not accepted or grammar.is_terminated():
            return False
    return False


def _set_bits(words: torch.Tensor) -> list[int]:
    """
    Number the bits that are set in (num_words,) int32, of which the lowest bit of the first is 0.

    By numpy: torch's threads are not there after a fork, and are waited for.
    """
    bits = np.unpackbits(words.numpy().view(np.uint8), bitorder="little")
    numbers: list[int] = np.flatnonzero(bits).tolist()
    return numbers


def _timed(call: Callable[..., Any], request_id: str, fail: Callable[[str], None]) -> Callable[..., Any]:
    def timed(*args: Any) -> Any:
        began = time.thread_time()
        result = call(*args)
        if time.thread_time() - began > FAR_TOO_LONG * MAX_TOKEN_S:
            logger.warning("The grammar of request %s has become too slow; the request ends.", request_id)
            fail(request_id)
        return result

    return timed
