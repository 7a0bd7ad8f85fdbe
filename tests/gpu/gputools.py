"""What the tests on one GPU share. ``python -m pytest -m gpu tests/gpu`` runs them; without a device they are skipped."""

from __future__ import annotations

import gc

import pytest
import torch

DEVICE = "cuda"
ON_ONE_GPU = [pytest.mark.gpu]


def allocated() -> int:
    """Bytes of the device that this process holds, without the workspaces that cuBLAS keeps."""
    gc.collect()
    torch.cuda.synchronize()
    torch._C._cuda_clearCublasWorkspaces()
    return torch.cuda.memory_allocated()
