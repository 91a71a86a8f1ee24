"""
A device in a GPU's place: PyTorch's `meta`, which has no memory, with streams that compute nothing.

It watches what a GPU would be asked to do: which operations would make the host wait, which copies block, and which accesses
to one tensor from two streams are not ordered.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

GPU = torch.device("meta")
WAITING = {
    "nonzero", "_local_scalar_dense", "unique_dim", "_unique2", "unique_consecutive", "masked_select", "equal", "is_nonzero",
    "bincount", "histc",
}  # fmt: skip
"""Operations whose result has a shape, or is a number, that the host must wait for."""
VIEWS = {
    "alias", "as_strided", "detach", "expand", "permute", "select", "slice", "split", "squeeze", "t", "transpose", "unbind",
    "unsqueeze", "view", "_unsafe_view", "empty", "empty_like", "empty_strided", "new_empty", "lift_fresh",
}  # fmt: skip
"""Operations that launch nothing."""

Clock = dict[str, int]


class PretendGPU(TorchDispatchMode):
    """Watches all operations, and those that it is told of, as kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.stream = "main"
        self.clocks: dict[str, Clock] = {"main": {}}
        self.host: Clock = {}
        """What the host has waited for."""
        self.is_stepping = False
        """True while the host may not wait."""
        self.faults: list[str] = []
        self.launched: list[str] = []
        self.copied: list[str] = []
        self._writes: dict[int, tuple[str, int]] = {}
        self._reads: dict[int, Clock] = {}
        self._pinned: set[int] = set()
        self._kept: list[Tensor] = []
        """All tensors, so that none is found where another one was."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = func._schema.name.split("::")[1].rstrip("_") or func._schema.name, kwargs or {}
        if name == "_to_copy" and torch.device(kwargs.get("device") or args[0].device).type != args[0].device.type:
            return self._copied_across(func, args, kwargs)
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if not any(tensor.device == GPU for tensor in tensors):
            return func(*args, **kwargs)
        if name == "copy" and args[0].device != args[1].device:
            self._note_upload("copy_", args[1], kwargs.get("non_blocking", args[2] if len(args) > 2 else False))
            self.access(name, (), (args[0],))
            return args[0]
        if name in WAITING:
            self._fault(f"{name} waits")
        if name in ("index", "index_put", "_index_put_impl"):
            for index in [index for index in args[1] if index is not None]:
                if index.dtype is torch.bool:
                    self._fault(f"{name} by a mask waits")
                elif index.device != GPU:
                    self._fault(f"{name} by an index of the host copies it")
        elif any(tensor.device != GPU and tensor.dim() for tensor in tensors):
            self._fault(f"{name} of tensors of both")
        found = func(*args, **kwargs)
        if name not in VIEWS:
            written = [
                value
                for argument, value in zip(func._schema.arguments, args, strict=False)
                if argument.alias_info is not None and argument.alias_info.is_write
            ]
            made = [leaf for leaf in tree_leaves(found) if isinstance(leaf, Tensor)]
            self.launched.append(name)
            self.access(name, tensors, [*tree_leaves(written), *made])
        return found

    def _copied_across(self, func: Any, args: Any, kwargs: Any) -> Tensor:
        (source,), is_async = args, bool(kwargs.get("non_blocking"))
        if source.device == GPU:
            if source.numel():
                self.copied.append("down")
                if not is_async:
                    self._fault("a copy to the host blocks")
                self.access("copy to the host", (source,), ())
            return torch.zeros(source.shape, dtype=kwargs.get("dtype") or source.dtype)
        self._note_upload("to", source, is_async)
        made: Tensor = func(*args, **kwargs)
        self.access("copy from the host", (), (made,))
        return made

    def _note_upload(self, name: str, source: Tensor, is_async: bool) -> None:
        if not source.numel() or (not source.dim() and name == "copy_"):  # a number is an argument of the kernel
            return
        self.copied.append("up")
        if not is_async:
            self._fault(f"{name} from the host blocks")
        elif id(source) not in self._pinned:
            self._fault(f"{name} from the host is of memory that is not pinned")
        elif not source.is_contiguous():
            self._fault(f"{name} from the host is of memory with gaps")

    def access(self, name: str, read: Any, written: Any) -> None:
        """Note that something on the current stream reads and writes tensors."""
        clock = self.clocks[self.stream]
        _join(clock, self.host)
        clock[self.stream] = now = clock.get(self.stream, 0) + 1
        for tensor, is_write in [*((one, False) for one in read), *((one, True) for one in written)]:
            if not isinstance(tensor, Tensor) or tensor.device != GPU:
                continue
            self._kept.append(tensor)
            place = tensor.untyped_storage()._cdata
            earlier = dict([self._writes[place]]) if place in self._writes else {}
            if is_write:
                _join(earlier, self._reads.get(place, {}))
            for stream, then in earlier.items():
                if clock.get(stream, 0) < then:
                    verb = "writes to" if is_write else "reads"
                    self._fault(f"{name} on {self.stream} {verb} what {stream} may be using")
            if is_write:
                self._writes[place], self._reads[place] = (self.stream, now), {}
            else:
                self._reads.setdefault(place, {})[self.stream] = now

    def _fault(self, what: str) -> None:
        self.faults.append(what)

    def kernel(self, name: str) -> Any:
        """Make what stands in a Triton kernel's place: it may read and write all tensors that it gets."""
        gpu = self

        class Kernel:
            def __getitem__(self, grid: tuple[int, ...]) -> Any:
                return self._launch

            def _launch(self, *args: Any, **options: Any) -> None:
                tensors = [leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor)]
                assert all(tensor.device == GPU for tensor in tensors), name
                gpu.launched.append(name)
                gpu.access(name, (), tensors)

        return Kernel()

    @contextmanager
    def stepping(self) -> Iterator[None]:
        """Run what the host may not wait in."""
        self.is_stepping = True
        try:
            yield
        finally:
            self.is_stepping = False

    @contextmanager
    def installed(self) -> Iterator[PretendGPU]:
        """Stand in the place of CUDA."""
        gpu = self

        class Stream:
            def __init__(self, device: Any = None, name: str | None = None) -> None:
                self.name = name or f"stream {len(gpu.clocks)}"
                gpu.clocks.setdefault(self.name, {})

            def wait_stream(self, other: Stream) -> None:
                _join(gpu.clocks[self.name], gpu.clocks[other.name])

        class Event:
            def __init__(self, blocking: bool = False) -> None:
                self.clock: Clock = {}

            def record(self) -> None:
                self.clock = dict(gpu.clocks[gpu.stream])

            def synchronize(self) -> None:
                if gpu.is_stepping:
                    gpu._fault("the host waits for an event")
                _join(gpu.host, self.clock)

        @contextmanager
        def stream(one: Stream) -> Iterator[None]:
            before, gpu.stream = gpu.stream, one.name
            try:
                yield
            finally:
                gpu.stream = before

        def pin_memory(tensor: Tensor) -> Tensor:
            pinned = tensor.clone()
            gpu._pinned.add(id(pinned))
            gpu._kept.append(pinned)
            return pinned

        current = {"Stream": Stream, "Event": Event, "stream": stream}
        with (
            patch.multiple("torch.cuda", current_stream=lambda device: Stream(name=gpu.stream), **current),
            patch.object(Tensor, "pin_memory", pin_memory),
            self,
        ):
            yield self


def _join(clock: Clock, other: Clock) -> None:
    for stream, at in other.items():
        clock[stream] = max(clock.get(stream, 0), at)
