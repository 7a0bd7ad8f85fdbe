"""Executes manifests: (state, manifest, its records, configuration) -> next state. Nothing else trains by reinforcement.

The same function serves the normal run, the redo after a crash, and replay.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from broker.errors import CheckpointError
from broker.messages import Manifest, StepResult
from broker.weights.layout import specs_of
from broker.weights.sink import TensorSpec
from learner.config import EvaluateStage, LearnerConfig, LearnerTable, RlStage
from learner.model import lora
from learner.model.adapters import AdapterFiles
from learner.model.load import load_model, load_tokenizer, save_model, save_shape, set_gradient_checkpointing
from learner.model.loraconfig import LoraTable
from learner.model.policy import PolicyWeights
from learner.parallel.gather import buckets, gathered, named_tensors
from learner.parallel.pool import Pool
from learner.parallel.saving import Part, Writer, take_part
from learner.planning.groups import Judged
from learner.training.checkpoint import Checkpoints, Progress, open_state, read_progress, resolved
from learner.training.optimizer import build_optimizer
from learner.training.placement import ALONE, ParallelPlan
from learner.training.trainer import TrainState, train_step


class Executor:
    """Holds the executor's state: the model, its optimizer, and where training stands.

    In a pool every rank has one: what changes the state, rank 0 orders the others to do with it (``learner.parallel``).
    """

    def __init__(
        self, config: LearnerConfig, model_path: str, seed: int, directory: Path, plan: ParallelPlan = ALONE
    ) -> None:
        self.config, self.seed, self.directory, self.plan = config, seed, directory, plan
        table = config.learner
        plan.settle(config)
        where = {"base": str(config.file.base), "model": model_path, "seed": seed, "directory": str(directory)}
        with plan.ordering("begin", tables=config.file.tables, **where):
            pass
        torch.set_num_threads(table.threads)
        if table.deterministic:
            torch.use_deterministic_algorithms(True)
        self.device = plan.device or chosen_device(table)
        self.model_path = model_path
        self.progress = Progress()
        self.train: TrainState | None = None
        self.adapters = AdapterFiles(directory / "adapters")
        self._writer = Writer(plan) if isinstance(plan, Pool) else None

    # -- state ---------------------------------------------------------------------------------------------------------

    def start(self, init: str) -> None:
        """Begin a run: the model of the run file, or random weights of its shape."""
        with self.plan.ordering("start", init=init):
            self.model = self._model(self.model_path, init=init, seed=self.seed)
        self.progress = Progress()
        self._check_options()

    def load(self, path: Path) -> Mapping[str, Any]:
        """Take up a checkpoint; returns a supervised stage's own state. Raises CheckpointError."""
        with self.plan.ordering("load", path=str(path)):
            self.train = None
            self.model = self._model(str(path))
            self.progress = read_progress(path)
            state = open_state(path)
            torch.set_rng_state(state["rng"].rows())
            self._check_options()
            table = self.lora_table(self.progress.stage)
            if state.get("lora") is not None:
                kept = resolved(state["lora"], self.plan.held)
                lora.restore(self.model, kept, table.dropout if table is not None else 0.0)
            if state.get("optimizer") is not None or state["extra"]:
                lora.check_same(self.model, table)
            stage = self.config.stages[self.progress.stage] if self.progress.stage < len(self.config.stages) else None
            if state.get("optimizer") is not None and isinstance(stage, RlStage):
                train = self.begin_stage(self.progress.stage)
                train.optimizers.load_state_dict(resolved(state["optimizer"], self.plan.held))
                if state.get("reference") is not None and train.reference is not None:
                    train.reference.load_state_dict(resolved(state["reference"], self.plan.held))
            return dict(resolved(state["extra"], self.plan.held))

    def save(self, checkpoints: Checkpoints, keep: int, name: str = "", extra: Mapping[str, Any] | None = None) -> Path:
        """Write all that ``load`` takes up; ``extra`` is a supervised stage's own state.

        A pool writes in the background, unless the checkpoint has a ``name``: that it has failed is raised by the next call.
        """
        if self._writer is None:
            return checkpoints.save(self.progress, self._state(extra or {}), self.save_model, keep, name)
        self._writer.wait()
        progress, (final, beside) = self.progress, checkpoints.begin(self.progress, name)

        def finish(part: Part) -> None:
            save_shape(self.model, self.model_path, beside)
            checkpoints.finish(progress, part.tree, final, beside, keep, part.layout)

        self.write(beside, extra or {}, finish)
        if name:
            self._writer.wait()
        return final

    def write(self, beside: Path, extra: Mapping[str, Any], finish: Callable[[Part], None] | None = None) -> None:
        """Write this rank's part of a checkpoint into ``beside``; rank 0 then does ``finish``."""
        assert self._writer is not None and isinstance(self.plan, Pool)
        with self.plan.ordering("save", beside=str(beside)):
            part = take_part(self.plan, self.model, self._state(extra), self._bucket_bytes)
            self._writer.begin(part, beside, finish)

    def close(self) -> None:
        """Wait until the last checkpoint is on the disk. Raises OSError or CheckpointError if it could not be written."""
        if self._writer is not None:
            self._writer.wait()

    def _state(self, extra: Mapping[str, Any]) -> dict[str, Any]:
        train = self.train
        state: dict[str, Any] = {
            "rng": torch.get_rng_state(),
            "extra": dict(extra),
            "optimizer": None,
            "reference": None,
            "lora": lora.state(self.model),
        }
        if train is not None:
            state["optimizer"] = train.optimizers.state_dict()
            if train.reference is not None:
                state["reference"] = train.reference.state_dict()
        return state

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
        """The policy's parameters by name as engines get them, tied ones once; each is computed when it is asked for.

        Of one process: a pool has them whole nowhere, and gives ``weights``.
        """
        return PolicyWeights(self.model, self._published, tied=False)

    def specs(self) -> tuple[TensorSpec, ...]:
        """What ``weights`` gives, in order."""
        if not isinstance(self.plan, Pool):
            return specs_of(self.tensors())
        return tuple(
            TensorSpec(name, str(self._kind(tensor)).removeprefix("torch."), tuple(tensor.shape))
            for name, tensor in named_tensors(self.model)
        )

    def weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The whole parameters by name, tied ones once; to be taken to the end. In a pool they come bucket by bucket."""
        if not isinstance(self.plan, Pool):
            yield from self.tensors().items()
            return
        with self.plan.ordering("weights"):
            for bucket in buckets(named_tensors(self.model), self._bucket_bytes):
                for name, tensor in gathered(bucket, self.plan, owner=0):
                    yield name, tensor.to(self._kind(tensor))

    @property
    def _published(self) -> torch.dtype:
        """The type that engines get the weights in."""
        table = self.config.learner
        kind: torch.dtype = getattr(torch, table.publish_dtype or table.dtype)
        return kind

    def _kind(self, tensor: torch.Tensor) -> torch.dtype:
        return self._published if tensor.is_floating_point() else tensor.dtype

    @property
    def _bucket_bytes(self) -> int:
        return int(self.config.learner.bucket_mb * 2**20)

    def _model(self, path: str, **how: Any) -> Any:
        model = load_model(path, dtype=torch.float32, device=self.plan.load_device(self.device), **how)
        return self.plan.shard(model)

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
            self.replace(manifest.weights)
            self.progress = Progress(manifest.step, manifest.stage, 0, False, offset)
        else:
            self.progress = Progress(version, manifest.stage, self.progress.stage_step, True, offset)
            self.drop()
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
            else self.begin_stage(manifest.stage)
        )
        train.step, train.stage_step = before.version, stage_step
        report = train_step(train, groups, self.config.rl(stage), stage.steps)
        self.progress = Progress(manifest.step, manifest.stage, stage_step + 1, False, offset)
        metrics = {**report.metrics, **manifest.metrics}
        return StepResult(manifest.step, manifest.stage, stage_step + 1, metrics, report.phases, time.time())

    def begin_stage(self, stage: int) -> TrainState:
        """A fresh optimizer (and reference) for an RL stage; fresh adapters too, unless a checkpoint has brought them."""
        rl = self.config.stages[stage]
        assert isinstance(rl, RlStage)
        table = self.config.rl(rl)
        with self.plan.ordering("begin_stage", stage=stage):
            if table.lora is not None and not lora.is_adapted(self.model):
                lora.adapt(self.model, table.lora, self.seed + stage)
            set_gradient_checkpointing(self.model, table.gradient_checkpointing)
            optimizers = build_optimizer(self.model, table.optimizer, table.offload != "none")
            self.train = TrainState.begin(self.model, optimizers, stage, table, self.device, self.plan)
        return self.train

    def drop(self) -> None:
        """Give up what only the stage needed: its optimizer and reference; its adapters become part of the weights."""
        with self.plan.ordering("drop"):
            if self.train is not None:
                self.train.residence.model_to_device()
            self.train = None
            lora.merge(self.model)

    def replace(self, where: str) -> None:
        """The model is from now on what lies in a directory (of the run), or under its Hugging Face id."""
        with self.plan.ordering("replace", where=where):
            self.train = None
            inside = self.directory / where
            self.model = self._model(str(inside) if inside.is_dir() else where)


def chosen_device(table: LearnerTable) -> str:
    """``[learner] device``, found out where it is ``auto``."""
    return table.device if table.device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
