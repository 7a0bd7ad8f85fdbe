"""The inputs of the checks, opened when a check first needs them: the run file, rows of its sources, the tokenizer, the
configuration.

Does not import torch: tokenizers and configurations do not need it, and loading it takes longer than all the checks.
"""

from __future__ import annotations

import importlib.util
import logging
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

from broker.chat import Chat, Chats
from broker.errors import DataAway, DataError, HeadraceError
from headrace.running.runfile import WholeRun
from learner.data.registry import open_documents, open_prompts
from learner.data.source import Document, PromptRow, row_of
from learner.stages.rl import Phase
from learner.stages.stage import Stage
from learner.tables import Benchmark, SamplingTable, SupervisedTable, Training

ROWS = 64
"""How many rows of each source are checked in full, spread evenly over it."""
ROW_SECONDS = 3.0
"""How long reading the rows of one source may take; only rows read until then are checked."""
Purpose = Literal["train", "held out", "collected", "documents"]


class Mix(NamedTuple):
    """A reward mix, and the table that it comes from."""

    where: str
    weights: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Use:
    """One source as one stage reads it: its first ``asked`` rows (None: all), each ``samples`` times.

    ``where`` names the stage in findings. ``sampling`` and ``training`` are None if the use has none.
    """

    source: str
    stage: Stage
    purpose: Purpose
    where: str
    sampling: SamplingTable | None = None
    asked: int | None = None
    samples: int = 1
    training: Training | None = None
    judge: str = ""
    """The rewarder that judges which answers are correct; only for held-out questions."""
    mixes: tuple[Mix, ...] = ()
    """What its prompts are rewarded by, in the order of the phases; only for training."""


@dataclass(frozen=True, slots=True)
class Rows:
    """``good`` rows by number, and the reasons of ``odd`` ones. ``size``: of the whole source (None: endless)."""

    size: int | None
    good: Mapping[int, Any]
    odd: Mapping[int, str]

    @property
    def count(self) -> int:
        return len(self.good) + len(self.odd)


class Subject:
    """The run that is checked. ``thorough``: also load what otherwise only a daemon would load, which takes time."""

    def __init__(self, whole: WholeRun, thorough: bool = True) -> None:
        self.whole, self.thorough = whole, thorough
        self.uses = tuple(_uses(whole))
        self.refused: dict[str, str] = {}
        """The sources that could not be opened, with the reason."""
        self.elsewhere: set[str] = set()
        """Those of them that are not on this machine, and may be fine elsewhere."""
        self._opened: dict[tuple[str, bool], Any] = {}
        self._rows: dict[tuple[str, bool, int | None], Rows] = {}

    # -- sources -------------------------------------------------------------------------------------------------------

    def source(self, name: str, documents: bool) -> Any:
        """The source ``name``, as documents or prompts; None if it cannot be opened (``refused`` has the reason)."""
        key = (name, documents)
        if key not in self._opened:
            opening = open_documents if documents else open_prompts
            try:
                found: Any = opening(name, self.whole.learner.data[name], self.whole.file)
                _ = found.size
            except HeadraceError as fault:
                found, self.refused[name] = None, str(fault)
                self.elsewhere |= {name} if isinstance(fault, DataAway) else set()
            except Exception as fault:  # the plug-in boundary: a source may be third-party code
                found, self.refused[name] = None, f"{type(fault).__name__}: {fault}"
            self._opened[key] = found
        return self._opened[key]

    def rows(self, use: Use) -> Rows | None:
        """Up to ``ROWS`` of the rows that ``use`` reads; None if the source cannot be opened."""
        documents = use.purpose == "documents"
        key = (use.source, documents, use.asked)
        if key not in self._rows:
            source = self.source(use.source, documents)
            if source is None:
                return None
            size = source.size
            most = size if use.asked is None or size is None else min(size, use.asked)
            numbers = range(ROWS) if most is None else spread(most, ROWS)
            self._rows[key] = read(source, numbers, documents, ROW_SECONDS)
        return self._rows[key]

    # -- the model -----------------------------------------------------------------------------------------------------

    @property
    def model(self) -> str:
        """The model as transformers finds it: a path or an id of Hugging Face."""
        named = self.whole.run.model
        beside = self.whole.file.resolve(named)
        return str(beside) if beside.exists() else named

    @cached_property
    def tokenizer(self) -> Any:
        """The model's tokenizer; None if it cannot be loaded (``refused_tokenizer`` has the reason)."""
        try:
            with without_torch():
                from transformers import AutoTokenizer
            return AutoTokenizer.from_pretrained(self.model)
        except (OSError, ValueError) as fault:
            self.refused_tokenizer = str(fault).splitlines()[0]
            self.model_elsewhere |= is_elsewhere(fault)
            return None

    refused_tokenizer = ""

    @cached_property
    def config(self) -> Any:
        """The configuration of the text model; None if it cannot be loaded (``refused_config`` has the reason)."""
        try:
            with without_torch():
                from transformers import AutoConfig
            return AutoConfig.from_pretrained(self.model).get_text_config()
        except (OSError, ValueError) as fault:
            self.refused_config = str(fault).splitlines()[0]
            self.model_elsewhere |= is_elsewhere(fault)
            return None

    def config_of(self, model: str) -> Any:
        """The configuration of another model; None if it cannot be loaded."""
        beside = self.whole.file.resolve(model)
        try:
            with without_torch():
                from transformers import AutoConfig
            return AutoConfig.from_pretrained(str(beside) if beside.exists() else model).get_text_config()
        except (OSError, ValueError):
            return None

    refused_config = ""
    model_elsewhere = False
    """Whether the model is not on this machine, and may be fine elsewhere."""

    @cached_property
    def _chats(self) -> Chats:
        return Chats(self.tokenizer)

    def chat(self, source: str) -> Chat:
        """The chat template with the options of a source."""
        return self._chats.of(self.whole.learner.data[source].chat)


def is_elsewhere(fault: BaseException) -> bool:
    """Whether loading a model failed because its files are not here and Hugging Face cannot be reached."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    return isinstance(fault.__cause__, LocalEntryNotFoundError | ConnectionError)


def read(source: Any, numbers: range | list[int], documents: bool, seconds: float) -> Rows:
    """The rows of these ``numbers``, as many as can be read within ``seconds``."""
    good: dict[int, PromptRow | Document] = {}
    odd: dict[int, str] = {}
    until = time.monotonic() + seconds
    for number in numbers:
        try:
            good[number] = source.document(number, 1.0) if documents else row_of(source, number)
        except DataError as fault:
            odd[number] = str(fault)
        except Exception as fault:  # the plug-in boundary: a source may be third-party code
            odd[number] = f"{type(fault).__name__}: {fault}"
        if time.monotonic() > until:
            break
    return Rows(source.size, good, odd)


@contextmanager
def without_torch() -> Iterator[None]:
    """Import transformers in the block as if torch were not installed, unless one of them is loaded already."""
    found = importlib.util.find_spec
    if "torch" in sys.modules or "transformers" in sys.modules:
        yield
        return
    logging.getLogger("transformers").setLevel(logging.ERROR)  # it warns that there is no torch, as intended
    importlib.util.find_spec = lambda name, package=None: None if name == "torch" else found(name, package)
    try:
        yield
    finally:
        importlib.util.find_spec = found


def spread(size: int, count: int) -> list[int]:
    """At most ``count`` evenly spaced numbers in [0, ``size``), including the first and the last."""
    count = min(size, count)
    return sorted({i * (size - 1) // max(1, count - 1) for i in range(count)})


def _uses(whole: WholeRun) -> Iterator[Use]:
    config = whole.learner
    for index, stage in enumerate(config.stages):
        training = config.training(index)
        where = f"[[stage]] {stage.name}"
        asked: Mapping[str, Benchmark] = getattr(stage, "asked", dict)()
        usual = (training or config.learner).sampling
        for benchmark in asked.values():
            if benchmark.data in config.data:
                yield Use(
                    benchmark.data, stage, "held out", where, benchmark.sampled(usual), benchmark.questions, benchmark.k,
                    judge=benchmark.rewarder,
                )  # fmt: skip
        held_out = {b.data for b in asked.values()}
        read = set(getattr(stage, "weights", dict)()) or set(stage.sources().values()) - held_out
        for name in sorted(read & config.data.keys()):
            if isinstance(stage, SupervisedTable):
                yield Use(name, stage, "documents", where)
            elif training is not None:
                phases = getattr(stage, "phases", lambda usual: ())(training.sampling)
                phases = [phase for phase in phases if name in phase.weights]
                mixed: dict[SamplingTable, list[Mix]] = {} if phases else {training.sampling: [_mix(whole, name)]}
                last = None
                for phase in phases:
                    mix = _mix(whole, name, where, phase)
                    last = last if last is not None and last.weights is mix.weights else mix  # by where it is set first
                    mixed.setdefault(phase.sampling, []).append(last)
                for sampling, mixes in mixed.items():
                    yield Use(
                        name, stage, "train", where, sampling, samples=training.group_size, training=training, mixes=tuple(mixes)
                    )  # fmt: skip
            elif not stage.reads_rows:
                yield Use(
                    name, stage, "collected", where, getattr(stage, "sampling", None) or usual,
                    getattr(stage, "questions", None), getattr(stage, "samples", 1),
                )  # fmt: skip


def _mix(whole: WholeRun, source: str, stage: str = "", phase: Phase | None = None) -> Mix:
    """The mix of a source, as ``learner.sources`` resolves it: the stage's goes before the source's, and that before the run's."""
    if phase is not None and source in phase.rewards:
        since = f" after step {phase.begins}" if phase.begins else ""
        return Mix(f"{stage} rewards.{source}{since}", phase.rewards[source])
    own = whole.learner.data[source].rewards
    return Mix("[run] rewards", whole.run.rewards) if own is None else Mix(f"[data.{source}] rewards", own)
