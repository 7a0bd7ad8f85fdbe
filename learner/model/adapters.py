"""Writes adapters in peft's format (``lora.publish = "adapters"``), with their base model, for other programs to load.

``RUN/adapters/STAGE/base`` is the model that the stage began with, ``RUN/adapters/STAGE/v-VERSION`` the adapters of a policy. The
engines of this project take merged weights and do not use them.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from learner.model import lora
from learner.model.load import save_base

KEPT = 2  # number of newest versions kept for each stage


class AdapterFiles:
    """Writes the adapters of a run below ``directory``."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def write(self, model: Any, tokenizer_source: str, stage: str, directory: Path) -> None:
        """Write the adapters of ``model`` to ``directory``, after the stage's base model if that is not there yet."""
        base = self._directory / stage / "base"
        if not base.exists():
            beside = base.with_name(f".base.{os.getpid()}")
            shutil.rmtree(beside, ignore_errors=True)
            beside.mkdir(parents=True)
            save_base(model, tokenizer_source, beside)
            beside.replace(base)
        lora.save_adapters(model, str(base.resolve()), directory)

    def publish(self, model: Any, tokenizer_source: str, stage: str, version: int) -> None:
        """Write the adapters of policy ``version``, and delete all but the newest ``KEPT`` of the stage."""
        self.write(model, tokenizer_source, stage, self._directory / stage / f"v-{version:08d}")
        for old in sorted((self._directory / stage).glob("v-*"))[:-KEPT]:
            shutil.rmtree(old, ignore_errors=True)
