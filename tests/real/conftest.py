"""The real pretrained model: `make setup-real` imports it."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SMOLLM = ROOT / "runs" / "models" / "smollm2-135m"


@pytest.fixture(scope="session")
def smollm() -> Path:
    """SmolLM2-135M-Instruct, imported from a GGUF file."""
    import torch

    assert (SMOLLM / "config.json").exists(), f"{SMOLLM} is not there: make setup-real imports it"
    torch.set_num_threads(1)
    return SMOLLM
