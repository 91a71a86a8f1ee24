"""Triton's interpreter, with less of what it does again and again."""

from __future__ import annotations

from typing import Any


def patch_the_language_once_a_launch() -> None:
    """
    Leave `triton.language` alone where a kernel calls a function of its own, which uses the same one.

    A launch goes through all members of it and puts the interpreter's into their places. So does each call within a launch,
    where they are there already, for a third of all the time.
    """
    import triton.language as tl
    from triton.runtime import interpreter

    call = interpreter.InterpretedFunction.__call__
    if call.__name__ == "call_within_launch":
        return

    def call_within_launch(self: Any, *args: Any, **kwargs: Any) -> Any:
        is_patched = self.fn.__globals__.get("tl") is tl
        return self.rewrite()(*args, **kwargs) if is_patched else call(self, *args, **kwargs)

    interpreter.InterpretedFunction.__call__ = call_within_launch
