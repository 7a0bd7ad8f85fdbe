"""What the tests on one GPU share. ``python -m pytest -m gpu tests/gpu`` runs them; without a device they are skipped."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable

import pytest
import torch

DEVICE = "cuda"
ON_ONE_GPU = [pytest.mark.gpu, pytest.mark.timeout(300)]


def allocated() -> int:
    """Bytes of the device that this process holds, without the workspaces that cuBLAS keeps."""
    gc.collect()
    torch.cuda.synchronize()
    torch._C._cuda_clearCublasWorkspaces()
    return torch.cuda.memory_allocated()


def until(happened: Callable[[], object], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)
