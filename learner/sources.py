"""The data of a run as its learner uses it: which rows, in which order, with which mix and template, and the documents of earlier stages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from broker.errors import RunFileError
from broker.messages import Artefact, Era, Sampling
from broker.run import Run
from broker.spelling import nearest
from learner.chosen import Choice, Clean
from learner.config import LearnerConfig
from learner.data.files import Rows
from learner.data.mixture import InOrder, MixedDocuments, Part, Reading
from learner.data.registry import open_rows
from learner.data.selection import selected
from learner.data.source import DocumentSource, PromptSource
from learner.planning.eras import KeptEras
from learner.planning.feed import Ask, Feeding, Schedule
from learner.tables import SamplingTable, SourceTable

if TYPE_CHECKING:
    from learner.stages.rl import Phase


class Sources:
    """``eras`` and ``cursor`` are what the log knows of each source; ``mix`` is the reward mix of prompts whose source has none of its own."""

    def __init__(
        self,
        run: Run,
        config: LearnerConfig,
        eras: Mapping[str, tuple[Era, ...]],
        cursor: Mapping[str, int],
    ) -> None:
        self.mix = run.table.rewards
        self._run, self._config, self._eras, self._cursor = run, config, eras, cursor
        self._schedules: dict[tuple[str, bool], Schedule] = {}
        self._rows: dict[str, tuple[list[int], int]] = {}
        self._kept = KeptEras(run.directory)
        self.clean = Clean(run, config)

    def schedule(self, name: str, shuffle: bool) -> Schedule:
        """The order of data source ``name``. Raises RunFileError if the run file has none of that name."""
        key = (name, shuffle)
        if key not in self._schedules:
            source: PromptSource = self.clean.prompts(name, self._table(name))
            begins = self._cursor.get(name, 0) if shuffle else 0
            eras = self._kept.known(name, self._eras.get(name, ()), begins) if shuffle else ()
            if shuffle and name in self._rows:
                numbers, chosen = self._rows[name]
                source = selected(source, numbers)
                begins = chosen if eras and eras[-1].start < chosen else begins
            schedule = Schedule(name, source, self._run.table.seed, shuffle, eras, begins)
            if shuffle:
                self._kept.keep(name, schedule.eras)
            self._schedules[key] = schedule
        return self._schedules[key]

    def begin_stage(
        self, index: int, stage: str, names: Iterable[str], version: int, made: Callable[[Artefact], None]
    ) -> None:
        """Choose the rows of those sources of the stage that have a curriculum, by what the log says now; after a restart as before.

        ``made`` records the choice, with the positions that the log was read up to, before the first of the rows is asked.
        """
        for name in names:
            table = self._table(name)
            if table.select.curriculum is None:
                continue
            before = self._schedules.pop((name, True), None)
            if before is not None:
                self._eras = {**self._eras, name: before.eras}
            source = self.clean.prompts(name, table)
            chosen = Choice(self._run, f"{stage}-{name}", name, source, table.select.curriculum)
            self._rows[name] = chosen.rows(index, version, self._cursor.get(name, 0), made)

    def feeding(
        self,
        name: str,
        size: int,
        sampling: SamplingTable,
        weight: float = 1.0,
        purpose: str = "train",
        collection: str = "",
        judge: str = "",
        mix: Mapping[str, float] | None = None,
    ) -> Feeding:
        """How ``size`` samples of each prompt of ``name`` are asked; those that are no training in the order of the rows.

        ``mix`` goes before that of the source. A ``judge`` that is not in the mix judges alone: the others of the run may know nothing of
        these questions.
        """
        table = self._table(name)
        own = table.rewards if mix is None else mix
        found = self.mix if own is None else own
        if judge and judge not in found:
            found = {judge: 1.0} if own is None else {**own, judge: 1.0}
        ask = Ask(size, found, sampling_of(sampling), purpose, collection, table.environment, table.chat)
        return Feeding(self.schedule(name, purpose == "train"), ask, weight)

    def feedings(self, phase: Phase, size: int) -> tuple[Feeding, ...]:
        """How the sources of one phase of a stage are asked, ``size`` samples of each prompt."""
        return tuple(
            self.feeding(name, size, phase.sampling, weight, mix=phase.rewards.get(name))
            for name, weight in phase.weights.items()
        )

    def documents(self, data: str | tuple[str, ...] | Mapping[str, float]) -> Reading:
        """Source ``data`` of ``[data]``, or what an earlier stage of that name collected; several of them are mixed. Raises RunFileError,
        DataError."""
        if isinstance(data, str):
            return InOrder(data, self._documents(data))
        weights = data if isinstance(data, Mapping) else dict.fromkeys(data, 0.0)
        parts = [Part(name, self._documents(name), weight, self.template(name)) for name, weight in weights.items()]
        return MixedDocuments(parts, self._run.table.seed)

    def _documents(self, name: str) -> DocumentSource:
        return self.clean.documents(name, self._made(name) or self._table(name))

    def template(self, name: str) -> Mapping[str, Any] | None:
        """The options of the chat template for source ``name``; None where it names none."""
        table = self._config.data.get(name)
        return table.chat if table is not None else None

    def rows(self, name: str) -> Rows:
        """The same as rows with all their columns. Raises RunFileError."""
        return open_rows(name, self._made(name) or self._table(name), self._run.file)

    def _made(self, name: str) -> SourceTable | None:
        """What a stage of that name has collected; None where it is no stage's name, or nothing is there."""
        made = self._run.directory / "artefacts" / f"{name}.jsonl"
        is_stage = name not in self._config.data and name in {stage.name for stage in self._config.stages}
        return SourceTable(path=str(made)) if is_stage and made.exists() else None

    def _table(self, name: str) -> SourceTable:
        table = self._config.data.get(name)
        if table is None:
            raise RunFileError(f"[data] has no {name!r}{nearest(name, list(self._config.data))}")
        return table


def sampling_of(table: SamplingTable) -> Sampling:
    return Sampling(
        table.temperature, table.top_p, table.max_new_tokens, table.stop, table.max_turns, table.max_total
    )  # fmt: skip
