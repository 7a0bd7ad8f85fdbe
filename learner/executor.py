"""Executes manifests: (state, manifest, its records, configuration) -> next state. Nothing else trains by reinforcement.

The same function serves the normal run, the redo after a crash, and replay.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from broker.errors import CheckpointError
from broker.messages import Manifest, StepResult
from learner import lora
from learner.adapters import AdapterFiles
from learner.checkpoint import Checkpoints, Progress, read_progress, read_state
from learner.config import EvaluateStage, LearnerConfig, RlStage
from learner.groups import Judged
from learner.loraconfig import LoraTable
from learner.model import load_model, load_tokenizer, save_model, set_gradient_checkpointing
from learner.optimizer import build_optimizer
from learner.policy import PolicyWeights
from learner.trainer import TrainState, train_step


class Executor:
    """Holds the executor's state: the model, its optimizer, and where training stands."""

    def __init__(self, config: LearnerConfig, model_path: str, seed: int, directory: Path) -> None:
        self.config, self.seed, self.directory = config, seed, directory
        table = config.learner
        torch.set_num_threads(table.threads)
        if table.deterministic:
            torch.use_deterministic_algorithms(True)
        self.device = table.device if table.device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
        self.model_path = model_path
        self.progress = Progress()
        self.train: TrainState | None = None
        self.adapters = AdapterFiles(directory / "adapters")

    # -- state ---------------------------------------------------------------------------------------------------------

    def start(self, init: str) -> None:
        """Begin a run: the model of the run file, or random weights of its shape."""
        self.model = load_model(self.model_path, dtype=torch.float32, device=self.device, init=init, seed=self.seed)
        self.progress = Progress()
        self._check_options()

    def load(self, path: Path) -> Mapping[str, Any]:
        """Take up a checkpoint; returns a supervised stage's own state. Raises CheckpointError."""
        self.model = load_model(str(path), dtype=torch.float32, device=self.device)
        self.progress = read_progress(path)
        state = read_state(path)
        torch.set_rng_state(state["rng"])
        self.train = None
        self._check_options()
        table = self.lora_table(self.progress.stage)
        if state.get("lora") is not None:
            lora.restore(self.model, state["lora"], table.dropout if table is not None else 0.0)
        if state.get("optimizer") is not None or state["extra"]:
            lora.check_same(self.model, table)
        stage = self.config.stages[self.progress.stage] if self.progress.stage < len(self.config.stages) else None
        if state.get("optimizer") is not None and isinstance(stage, RlStage):
            train = self._train_state(self.progress.stage)
            train.optimizers.load_state_dict(state["optimizer"])
            if state.get("reference") is not None and train.reference is not None:
                train.reference.load_state_dict(state["reference"])
        return dict(state["extra"])

    def save(self, checkpoints: Checkpoints, keep: int, name: str = "", extra: Mapping[str, Any] | None = None) -> Path:
        """Write all that ``load`` takes up; ``extra`` is a supervised stage's own state."""
        train = self.train
        state: dict[str, Any] = {
            "rng": torch.get_rng_state(),
            "extra": dict(extra or {}),
            "optimizer": None,
            "reference": None,
            "lora": lora.state(self.model),
        }
        if train is not None:
            state["optimizer"] = train.optimizers.state_dict()
            if train.reference is not None:
                state["reference"] = train.reference.state_dict()
        return checkpoints.save(self.progress, state, self.save_model, keep, name)

    def save_model(self, directory: Path) -> None:
        save_model(self.model, self.model_path, directory)
        if (where := self._adapter_files()) is not None:
            self.adapters.write(self.model, self.model_path, where, directory / "adapter")

    def save_adapters(self, version: int) -> None:
        """Write the adapters of policy ``version`` for others, if the stage under way asks for it."""
        if (where := self._adapter_files()) is not None:
            self.adapters.publish(self.model, self.model_path, where, version)

    def _adapter_files(self) -> str | None:
        """Name of the stage whose adapters are to be written; None if none are."""
        at = self.progress.stage
        table = self.lora_table(at)
        if table is None or table.publish != "adapters" or not lora.is_adapted(self.model):
            return None
        return f"{at}-{self.config.stages[at].name}"

    def lora_table(self, stage_index: int) -> LoraTable | None:
        """What the run file says of the adapters of a stage."""
        stage = self.config.stages[stage_index] if stage_index < len(self.config.stages) else None
        if stage is None or isinstance(stage, EvaluateStage):
            return None
        return self.config.rl(stage).lora if isinstance(stage, RlStage) else stage.lora

    def _check_options(self) -> None:
        """Raises RunFileError if a stage asks of the model what it cannot do; before hours of the stages before it."""
        for index, stage in enumerate(self.config.stages):
            if stage.model and index > self.progress.stage:
                return
            table = self.lora_table(index)
            if table is not None:
                lora.targeted(self.model, table)

    @property
    def vocabulary(self) -> int:
        return int(self.model.config.vocab_size)

    def tokenizer(self) -> Any:
        return load_tokenizer(self.model_path)

    def tensors(self) -> Mapping[str, torch.Tensor]:
        """The policy's parameters by name as engines get them, tied ones once; each is computed when it is asked for."""
        table = self.config.learner
        return PolicyWeights(self.model, getattr(torch, table.publish_dtype or table.dtype), tied=False)

    def reconfigure(self, config: LearnerConfig, stage: int) -> None:
        """Go on in ``stage`` by other options. Raises RunFileError if they ask for other adapters in the middle of it."""
        self.config = config
        if self.train is not None and self.train.stage == stage:
            lora.check_same(self.model, self.lora_table(stage))

    # -- execution -----------------------------------------------------------------------------------------------------

    def execute(self, manifest: Manifest, groups: tuple[tuple[Judged, ...], ...], offset: int) -> StepResult | None:
        """Take one manifest; ``offset`` is the one behind it in the ``steps`` topic. Returns what a step gave."""
        version = self.progress.version
        if manifest.step != version + (manifest.kind != "close"):
            raise CheckpointError(
                f"manifest {manifest.kind!r} of step {manifest.step} does not follow version {version}"
            )
        if manifest.kind == "step":
            return self._step(manifest, groups, offset)
        if manifest.kind == "weights":
            self._replace_weights(manifest)
            self.progress = Progress(manifest.step, manifest.stage, 0, False, offset)
        else:
            self.progress = Progress(version, manifest.stage, self.progress.stage_step, True, offset)
            self._end_stage()
        return None

    def _step(self, manifest: Manifest, groups: tuple[tuple[Judged, ...], ...], offset: int) -> StepResult:
        before = self.progress
        stage = self.config.stages[manifest.stage]
        if not isinstance(stage, RlStage):
            raise CheckpointError(
                f"manifest of step {manifest.step} trains stage {manifest.stage}, which is no RL stage"
            )
        stage_step = before.stage_step if before.stage == manifest.stage and not before.closed else 0
        train = (
            self.train
            if self.train is not None and self.train.stage == manifest.stage
            else self._train_state(manifest.stage)
        )
        train.step, train.stage_step = before.version, stage_step
        report = train_step(train, groups, self.config.rl(stage), stage.steps)
        self.progress = Progress(manifest.step, manifest.stage, stage_step + 1, False, offset)
        metrics = {**report.metrics, **manifest.metrics}
        return StepResult(manifest.step, manifest.stage, stage_step + 1, metrics, report.phases, time.time())

    def _train_state(self, stage_index: int) -> TrainState:
        """A fresh optimizer (and reference) for an RL stage; fresh adapters too, unless a checkpoint has brought them."""
        stage = self.config.stages[stage_index]
        assert isinstance(stage, RlStage)
        table = self.config.rl(stage)
        if table.lora is not None and not lora.is_adapted(self.model):
            lora.adapt(self.model, table.lora, self.seed + stage_index)
        set_gradient_checkpointing(self.model, table.gradient_checkpointing)
        optimizers = build_optimizer(self.model, table.optimizer, table.offload != "none")
        self.train = TrainState.begin(self.model, optimizers, stage_index, table, self.device)
        return self.train

    def _end_stage(self) -> None:
        """Give up what only the stage needed: its optimizer and reference; its adapters become part of the weights."""
        if self.train is not None:
            self.train.residence.model_to_device()
        self.train = None
        lora.merge(self.model)

    def _replace_weights(self, manifest: Manifest) -> None:
        """The model is from now on what lies in the manifest's directory (of the run), or under its Hugging Face id."""
        inside = self.directory / manifest.weights
        self.model = load_model(
            str(inside) if inside.is_dir() else manifest.weights, dtype=torch.float32, device=self.device
        )
        self.train = None
