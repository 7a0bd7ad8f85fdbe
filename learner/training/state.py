"""The learner's state: the model, its optimizer, and how far training has come. ``executor`` changes it, ``saving`` stores it.

In a pool every rank has one: what changes the state, rank 0 orders the others to do with it (``learner.parallel``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from broker.errors import CheckpointError
from broker.weights.sink import TensorSpec
from learner.config import LearnerConfig
from learner.model import lora
from learner.model.adapters import AdapterFiles
from learner.model.load import check_same_family, load_model, load_tokenizer, set_gradient_checkpointing
from learner.model.loraconfig import LoraTable
from learner.tables import RANDOM, LearnerTable, Training
from learner.training.checkpoint import Checkpoints, Progress, open_state, read_progress, resolved
from learner.training.optimizer import build_optimizer
from learner.training.placement import ALONE, Placement
from learner.training.trainer import TrainState


class LearnerState:
    """Holds what a manifest changes; ``placement`` is the ranks that it is spread over."""

    def __init__(
        self, config: LearnerConfig, model_path: str, seed: int, directory: Path, placement: Placement = ALONE
    ) -> None:
        self.config, self.seed, self.directory, self.placement = config, seed, directory, placement
        table = config.learner
        placement.settle(config)
        where = {"base": str(config.file.base), "model": model_path, "seed": seed, "directory": str(directory)}
        with placement.ordering("begin", tables=config.file.tables, **where):
            pass
        torch.set_num_threads(table.threads)
        if table.deterministic:
            torch.use_deterministic_algorithms(True)
        self.device = placement.device or chosen_device(table)
        self.model_path = model_path
        self.progress = Progress()
        self.train: TrainState | None = None
        self.adapters = AdapterFiles(directory / "adapters")
        self._saver = placement.saver()

    # -- what it becomes -----------------------------------------------------------------------------------------------

    def start(self, init: str) -> None:
        """Begin a run: the model of the run file, or random weights of its shape."""
        with self.placement.ordering("start", init=init):
            self.model = self._model(self.model_path, init=init, seed=self.seed)
        self.progress = Progress()
        self._check_options()

    def load(self, path: Path) -> Mapping[str, Any]:
        """Take up a checkpoint; returns a supervised stage's own state. Raises CheckpointError."""
        with self.placement.ordering("load", path=str(path)):
            self.train = None
            self.model = self._model(str(path))
            self.progress = read_progress(path)
            state = open_state(path)
            torch.set_rng_state(state["rng"].rows())
            self._check_options()
            table = self.lora_table(self.progress.stage)
            if state.get("lora") is not None:
                kept = resolved(state["lora"], self.placement.held)
                lora.restore(self.model, kept, table.dropout if table is not None else 0.0)
            if state.get("optimizer") is not None or state["extra"]:
                lora.check_same(self.model, table)
            stage = self.progress.stage
            reinforced = stage < len(self.config.stages) and self.config.training(stage) is not None
            if state.get("optimizer") is not None and reinforced:
                train = self.begin_stage(self.progress.stage)
                train.optimizers.load_state_dict(resolved(state["optimizer"], self.placement.held))
                if state.get("reference") is not None and train.reference is not None:
                    train.reference.load_state_dict(resolved(state["reference"], self.placement.held))
            return dict(resolved(state["extra"], self.placement.held))

    def begin_stage(self, stage: int) -> TrainState:
        """A fresh optimizer (and reference) for a stage of reinforcement; fresh adapters too, unless a checkpoint has brought them."""
        table = self.training(stage)
        with self.placement.ordering("begin_stage", stage=stage):
            if table.lora is not None and not lora.is_adapted(self.model):
                lora.adapt(self.model, table.lora, self.seed + stage)
            set_gradient_checkpointing(self.model, table.gradient_checkpointing)
            optimizers = build_optimizer(self.model, table.optimizer, table.offload != "none")
            self.train = TrainState.begin(self.model, optimizers, stage, table, self.device, self.placement)
        return self.train

    def train_of(self, stage: int) -> TrainState:
        """The training state of ``stage``, begun if it is not under way."""
        if self.train is not None and self.train.stage == stage:
            return self.train
        return self.begin_stage(stage)

    def drop(self) -> None:
        """Give up what only the stage needed: its optimizer and reference; its adapters become part of the weights."""
        with self.placement.ordering("drop"):
            if self.train is not None:
                self.train.residence.model_to_device()
            self.train = None
            lora.merge(self.model)

    def replace(self, where: str) -> None:
        """The model is from now on what lies in a directory (of the run), or under its Hugging Face id; ``random:SEED`` are random weights
        of the run file's model, ``random:SEED:SHAPE`` of another. Raises RunFileError for one of another family."""
        seed, _, shape = where.removeprefix(RANDOM).partition(":") if where.startswith(RANDOM) else ("", "", where)
        with self.placement.ordering("replace", where=where):
            self.train = None
            inside = self.directory / shape
            path = str(inside) if shape and inside.is_dir() else shape or self.model_path
            self.model = self._model(path, **({"init": "random", "seed": int(seed)} if seed else {}))
        check_same_family(path, self.model_path, self.model)

    def reconfigure(self, config: LearnerConfig, stage: int) -> None:
        """Go on in ``stage`` by other options. Raises RunFileError if they ask for other adapters in the middle of it."""
        self.config = config
        if self.train is not None and self.train.stage == stage:
            lora.check_same(self.model, self.lora_table(stage))

    # -- what others take of it ----------------------------------------------------------------------------------------

    def save(self, checkpoints: Checkpoints, keep: int, name: str = "", extra: Mapping[str, Any] | None = None) -> Path:
        """Write all that ``load`` takes up; ``extra`` is a supervised stage's own state.

        It may be written in the background, unless the checkpoint has a ``name``: a failure is raised by the next call.
        """
        return self._saver.save(self, checkpoints, keep, name, extra or {})

    def write(self, beside: Path, extra: Mapping[str, Any]) -> None:
        """A rank that follows: write the own part of a checkpoint into ``beside``."""
        self._saver.write(self, beside, extra)

    def check(self) -> None:
        """Raises OSError or CheckpointError if the last checkpoint could not be written."""
        self._saver.check()

    def close(self) -> None:
        """Wait until the last checkpoint is on the disk. Raises OSError or CheckpointError if it could not be written."""
        self._saver.wait()

    def save_adapters(self, version: int) -> None:
        """Write the adapters of policy ``version`` for others, if the stage under way asks for it."""
        if (where := self.adapter_files()) is not None:
            self.adapters.publish(self.model, self.model_path, where, version)

    def adapter_files(self) -> str | None:
        """Name of the stage whose adapters are to be written; None if none are."""
        at = self.progress.stage
        table = self.lora_table(at)
        if table is None or table.publish != "adapters" or not lora.is_adapted(self.model):
            return None
        return f"{at}-{self.config.stages[at].name}"

    def lora_table(self, stage: int) -> LoraTable | None:
        """What the run file says of the adapters of a stage."""
        stages = self.config.stages
        return stages[stage].adapters(self.config.training(stage)) if stage < len(stages) else None

    def training(self, stage: int) -> Training:
        """What ``stage`` trains by. Raises CheckpointError if it trains nothing by reinforcement."""
        found = self.config.training(stage) if stage < len(self.config.stages) else None
        if found is None:
            raise CheckpointError(f"stage {stage} of the run file trains nothing by reinforcement")
        return found

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

    def specs(self) -> tuple[TensorSpec, ...]:
        """What ``weights`` gives, in order."""
        return self.placement.specs(self.model, self.published_dtype)

    def weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The whole parameters by name as engines get them, tied ones once; to be taken to the end."""
        return self.placement.weights(self.model, self.published_dtype, self.bucket_bytes)

    @property
    def published_dtype(self) -> torch.dtype:
        """The type that engines get the weights in."""
        table = self.config.learner
        kind: torch.dtype = getattr(torch, table.publish_dtype or table.dtype)
        return kind

    @property
    def bucket_bytes(self) -> int:
        return int(self.config.learner.bucket_mb * 2**20)

    def _model(self, path: str, **how: Any) -> Any:
        model = load_model(path, dtype=torch.float32, device=self.placement.load_device(self.device), **how)
        return self.placement.shard(model)


def chosen_device(table: LearnerTable) -> str:
    """``[learner] device``, found out where it is ``auto``."""
    return table.device if table.device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
