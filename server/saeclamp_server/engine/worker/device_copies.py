"""
Worker process: copies between the host and the model's device for which neither waits. Free of vLLM.

On a GPU the host is a step ahead of the device, and one copy that blocks takes that lead away. So what goes up comes from
pinned memory, and what comes down is there when its event has passed. On a CPU both are plain copies.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Values = NDArray[np.int32] | NDArray[np.int64] | NDArray[np.float32] | NDArray[np.bool_]


def upload(values: Values | Tensor, device: torch.device) -> Tensor:
    """Copy values from the host to a new tensor on the device."""
    return _pinned(values, device).to(device, non_blocking=True)


def upload_into(table: Tensor, values: Values | Tensor) -> None:
    """Copy values from the host into (a part of) a table of the same shape and type."""
    if table.numel():
        table.copy_(_pinned(values, table.device), non_blocking=True)


def _pinned(values: Values | Tensor, device: torch.device) -> Tensor:
    """Return a tensor on the host that the device can copy by itself; PyTorch keeps it until that is done."""
    tensor = values.contiguous() if isinstance(values, Tensor) else torch.from_numpy(np.ascontiguousarray(values))
    return tensor if device.type == "cpu" else tensor.pin_memory()


class Fetch:
    """Tensors on their way from the device to the host."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        """Copy tensors, on the current stream, as they are when it has come that far."""
        # to the CPU, what is not to block is copied to pinned memory; a copy also where the device is the CPU
        self._copies = [tensor.to("cpu", non_blocking=True, copy=True) for tensor in tensors]
        self._originals = [*tensors]
        """Kept until they are copied: on another stream than they were made on nothing else keeps their memory."""
        self._event: torch.cuda.Event | None = None
        if any(tensor.device.type != "cpu" for tensor in tensors):
            # one that sleeps, and does not poll
            self._event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            self._event.record()

    def wait(self) -> Sequence[Tensor]:
        """Wait until they are on the host, and return them."""
        if self._event is not None:
            self._event.synchronize()
        self._event, self._originals = None, []
        return self._copies


class CopyStream:
    """Stream on which tables are copied to the host, beside what the main stream does next."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = None if device.type == "cpu" else torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._has_copies = False

    def fetch(self, tensors: Sequence[Tensor]) -> Fetch:
        """Copy tensors as the main stream leaves them now. What writes to them later must come behind `join`."""
        if self._stream is None:
            return Fetch(tensors)
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        self._has_copies = True
        with torch.cuda.stream(self._stream):
            return Fetch(tensors)

    def join(self) -> None:
        """Let the main stream wait, on the device, until all is copied."""
        if self._stream is not None and self._has_copies:
            torch.cuda.current_stream(self._device).wait_stream(self._stream)
            self._has_copies = False
