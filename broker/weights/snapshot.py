"""Snapshots of the weights, in host memory that the learner shares with its publisher process.

Copies from a GPU are asynchronous, on a separate stream, into locked pages: the learner continues at once, and its next work on the
device waits until the copies are done.
"""

from __future__ import annotations

import logging
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

log = logging.getLogger("weights")


class Snapshots:
    """``count`` buffers (``flat``: uint8 ``[size]``) and their file descriptors (``files``). ``device`` holds the weights to copy."""

    def __init__(self, size: int, device: str = "cpu", count: int = 2) -> None:
        self._device = torch.device(device)
        self.files: list[int] = []
        self.flat: list[Tensor] = []
        room = max(1, size)
        for i in range(count):
            file = os.memfd_create(f"headrace-weights-{i}")
            os.ftruncate(file, room)
            self.files.append(file)
            self.flat.append(torch.frombuffer(mmap.mmap(file, room), dtype=torch.uint8)[:size])
        self._from_gpu = self._device.type == "cuda"
        if self._from_gpu:
            self._locked = [flat for flat in self.flat if lock(flat)]
            self._stream = torch.cuda.Stream(self._device)
            self._copied = [torch.cuda.Event() for _ in range(count)]

    @contextmanager
    def writing(self, buffer: int) -> Iterator[None]:
        """Order the block's copies into the buffer after earlier and before later work on the device."""
        if not self._from_gpu:
            yield
            return
        computing = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(computing)
        with torch.cuda.stream(self._stream):
            yield
            self._copied[buffer].record(self._stream)
        computing.wait_event(self._copied[buffer])

    def wait(self, buffer: int) -> None:
        """Wait until all copies into the buffer are done."""
        if self._from_gpu:
            self._copied[buffer].synchronize()

    def close(self) -> None:
        """Close the descriptors; existing mappings stay valid."""
        if self._from_gpu:
            for flat in self._locked:
                torch.cuda.cudart().cudaHostUnregister(flat.data_ptr())
            self._locked = []
        for file in self.files:
            os.close(file)
        self.files = []


def lock(flat: Tensor) -> bool:
    """Lock the pages of a host tensor, so that a GPU can copy from and to them at full speed. False, with a warning in the log, if that
    is refused (``ulimit -l``, or too little memory): copies are then slower and synchronous."""
    if not flat.numel():
        return False
    code = torch.cuda.cudart().cudaHostRegister(flat.data_ptr(), flat.numel(), 0)
    if int(code) != 0:
        log.warning(
            "the host memory of the snapshots could not be locked (CUDA error %d): copies are slower", int(code)
        )
    return int(code) == 0
