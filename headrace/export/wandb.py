"""Weights & Biases. Offline, unless ``WANDB_MODE`` says otherwise: ``wandb sync`` sends what lies in the directory.

The x axis of every curve is ``step``, not the service's own count of rows: an evaluation may end after later steps.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import wandb

from broker.errors import RunFault


class WandbSink:
    """One W&B run. Raises RunFault if the service refuses it."""

    def __init__(self, directory: Path, run: str, config: Mapping[str, Any], project: str, mode: Any) -> None:
        settings = wandb.Settings(
            console="off", disable_git=True, disable_code=True, silent=True, x_disable_meta=True, x_disable_stats=True,
            x_save_requirements=False,
        )  # fmt: skip
        try:
            self._run = wandb.init(
                project=project, name=run, dir=str(directory), config=dict(config), mode=mode, settings=settings
            )
        except (wandb.Error, ValueError) as error:
            raise RunFault(f"W&B refuses the run: {' '.join(str(error).split())}") from error
        self._run.define_metric("*", step_metric="step")

    def scalars(self, step: int, values: Mapping[str, float], time: float) -> None:
        self._run.log({**values, "step": step, "_timestamp": time})

    def text(self, name: str, text: str) -> None:
        self._run.log({f"text/{name}": text})

    def close(self) -> None:
        self._run.finish()
        wandb.teardown()  # only once its service has ended is everything on the disk


@dataclass(frozen=True)
class WeightsAndBiases:
    """One W&B run an export. ``project`` and ``mode`` are those of the environment, else ``headrace`` and ``offline``."""

    project: str = ""
    mode: str = ""

    def open(self, directory: Path, run: str, config: Mapping[str, Any]) -> WandbSink:
        project = self.project or os.environ.get("WANDB_PROJECT", "headrace")
        return WandbSink(directory, run, config, project, self.mode or os.environ.get("WANDB_MODE", "offline"))
