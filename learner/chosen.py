"""Chooses the rows of a source by more than the source itself: those that are in no benchmark, and those that a curriculum picks by the log."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any

from broker.errors import DataError, RunFileError
from broker.messages import Artefact
from broker.patience import Seldom
from broker.run import Run
from learner.config import LearnerConfig
from learner.data.contamination import Benchmarked, Contamination, asked_rows, looked_through
from learner.data.registry import open_documents, open_prompts
from learner.data.selection import CurriculumTable, finite, read_rows, selected
from learner.data.source import DocumentSource, PromptSource
from learner.planning.curriculum import Read, chosen_rows, pass_rates
from learner.tables import SourceTable
from monitoring.files import replace

log = logging.getLogger("learner")
REPORT = "contamination.json"
SAID_SECONDS = 20.0  # between two words of a search that takes long


class Clean:
    """Opens sources without the rows that occur in a benchmark of the run file, if their ``select`` asks for it."""

    def __init__(self, run: Run, config: LearnerConfig) -> None:
        self._run, self._config = run, config
        self._against: dict[int, Benchmarked] = {}
        self._kept: dict[str, list[int]] = {}

    def prompts(self, name: str, table: SourceTable) -> PromptSource:
        """Raises RunFileError, DataError."""
        source: PromptSource = self._cleaned(name, table, open_prompts(name, table, self._run.file), False)
        return source

    def documents(self, name: str, table: SourceTable) -> DocumentSource:
        """Raises as ``prompts``."""
        source: DocumentSource = self._cleaned(name, table, open_documents(name, table, self._run.file), True)
        return source

    def _cleaned(self, name: str, table: SourceTable, source: Any, documents: bool) -> Any:
        if not table.select.decontaminate:
            return source
        if name not in self._kept:
            size = finite(source, f"[data.{name}]")
            found = contamination(
                self._config, name, source, range(size), self._benchmarks(table.select.ngram), documents
            )
            hit = {one.row for one in found.hits}
            self._kept[name] = [n for n in range(size) if n not in hit]
            if size and not self._kept[name]:
                raise DataError(f"[data.{name}] select.decontaminate: each of its {size} rows stands in a benchmark")
            log.info(
                "[data.%s] %d of %d rows stand in a benchmark and are left out: %s",
                name,
                len(hit),
                size,
                found.by_benchmark() or "none",
            )
            self._report(found)
        return selected(source, self._kept[name], documents)

    def _benchmarks(self, ngram: int) -> Benchmarked:
        if ngram not in self._against:
            self._against[ngram] = benchmarked(self._config, ngram)
        return self._against[ngram]

    def _report(self, found: Contamination) -> None:
        """Keep what was found in ``RUN/contamination.json``, by source."""
        path = self._run.directory / REPORT
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            known = {}
        told = {**(known if isinstance(known, dict) else {}), found.source: found.to_json()}
        replace(path, json.dumps(told, indent=2, ensure_ascii=False) + "\n")


def said_on_the_way(rows: Iterator[tuple[int, Any]], name: str, size: int) -> Iterator[tuple[int, Any]]:
    """``rows`` unchanged, with a log line on the progress of the search every now and then."""
    seldom = Seldom(SAID_SECONDS, at_once=False)
    for place, row in enumerate(rows):
        yield row
        if seldom():
            log.info("[data.%s] looked for %d of %d rows in the benchmarks", name, place + 1, size)


def benchmarked(config: LearnerConfig, ngram: int, leave_out: str = "") -> Benchmarked:
    """The questions of all benchmarks that the run file asks. Raises RunFileError, DataError."""
    asked = {
        name: asked_rows(open_prompts(name, config.data[name], config.file), questions)
        for name, questions in config.benchmarks().items()
        if name in config.data and name != leave_out
    }
    return Benchmarked(asked, ngram)


def contamination(
    config: LearnerConfig, name: str, source: Any, numbers: range, against: Benchmarked, documents: bool = False
) -> Contamination:
    """Look for the rows of ``source`` with these numbers in the benchmarks; one that is a benchmark itself is looked for in the others."""
    if name in config.benchmarks():
        against = benchmarked(config, against.ngram, leave_out=name)
    return looked_through(name, said_on_the_way(read_rows(source, numbers, documents), name, len(numbers)), against)


@dataclass(frozen=True)
class Choice:
    """The rows of source ``data`` that ``rule`` chooses for one stage, kept in ``RUN/artefacts/NAME.rows.json``: a stage chooses once."""

    run: Run
    name: str
    data: str
    source: PromptSource
    rule: CurriculumTable

    def rows(self, index: int, version: int, cursor: int, made: Callable[[Artefact], None]) -> tuple[list[int], int]:
        """The row numbers, and the prompt number that they hold from: ``cursor`` when they were chosen. A learner that was killed before its first
        manifest of them finds both again.

        Raises RunFileError if what was kept cannot be read, or is of a source with other rows; DataError if no row is chosen.
        """
        path = self.run.directory / "artefacts" / f"{self.name}.rows.json"
        size = finite(self.source, f"[data.{self.data}]")
        if path.exists():
            return self._kept(path.read_bytes(), size, str(path))
        with closing(self.run.open_log()) as opened:
            read = Read.now(opened, self.run.topics)
            rates = pass_rates(opened, self.run.topics, read, self.rule.rewarder)
        numbers = chosen_rows(self.source, size, rates, self.rule, f"[data.{self.data}]")
        text = json.dumps({"size": size, "begins": cursor, "rows": numbers})
        about = {
            "data": self.data, "rule": self.rule.model_dump(), "rated": len(rates),
            "read": {name: [list(pair) for pair in offsets.items()] for name, offsets in asdict(read).items()},
        }  # fmt: skip
        metrics = {"rows": float(size), "kept": float(len(set(numbers))), "asked": float(len(numbers))}
        made(
            Artefact(
                self.name, index, version, "rows", str(path.relative_to(self.run.directory)), hashlib.sha256(text.encode()).hexdigest(),
                metrics=metrics, about=about, created=time.time(),
            )
        )  # fmt: skip
        path.parent.mkdir(parents=True, exist_ok=True)
        replace(path, text)
        log.info(
            "[data.%s] the curriculum keeps %d of %d rows, %d prompts an epoch",
            self.data,
            len(set(numbers)),
            size,
            len(numbers),
        )
        return numbers, cursor

    def _kept(self, raw: bytes, size: int, where: str) -> tuple[list[int], int]:
        try:
            found = json.loads(raw)
            numbers, known, begins = list(map(int, found["rows"])), int(found["size"]), int(found["begins"])
        except (ValueError, TypeError, KeyError) as error:
            raise RunFileError(f"{where} cannot be read: {error!r}; remove it, and the rows are chosen anew") from error
        if known != size or not numbers or not all(0 <= n < size for n in numbers):
            raise RunFileError(
                f"{where} chooses from {known} rows, and [data.{self.data}] has {size} now; remove it, and the rows are chosen anew"
            )
        return numbers, begins
