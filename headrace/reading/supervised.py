"""The part of the audit that follows supervised steps: each has its record, and continues reading where the previous one stopped.

A step that was made again after a checkpoint may have read other documents than the first time, where the data was changed meanwhile: that
is counted. Older logs have one record for ten such steps, which is followed by its documents.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from broker.messages import StepResult
from headrace.reading.audit import Audit

REMEMBERED = 4096
"""How many steps back it is known what a step has read: a redo goes back to the newest checkpoint, no further."""
SEALED = "supervised/"  # how a seal's counts are called that tell where a stage was


class At(NamedTuple):
    """The newest step of a stage, and the number of the document that the next one begins with."""

    step: int
    document: int


@dataclass(slots=True)
class Supervised:
    """Takes the results of the steps topic in order; those of reinforcement have no documents and are not looked at."""

    audit: Audit
    _stages: dict[int, At] = field(default_factory=dict)
    _read: OrderedDict[tuple[int, int], str] = field(default_factory=OrderedDict)

    def begin(self, counts: Mapping[str, int]) -> Supervised:
        """Begin behind a seal with these counts (empty: with the first record)."""
        for name, step in counts.items():
            if name.startswith(SEALED) and name.endswith("/step"):
                stage = name.removeprefix(SEALED).removesuffix("/step")
                self._stages[int(stage)] = At(step, counts[f"{SEALED}{stage}/document"])
        return self

    def counts(self) -> dict[str, int]:
        """Where each stage is, for a seal."""
        told: dict[str, int] = {}
        for stage, (step, document) in self._stages.items():
            told |= {f"{SEALED}{stage}/step": step, f"{SEALED}{stage}/document": document}
        return told

    def take(self, result: StepResult) -> None:
        if result.documents is None:
            return
        first, count, digest = result.documents
        stage, step = result.stage, result.stage_step
        before = self._stages.get(stage)
        if before is not None and step > before.step + 1 and first > before.document:
            self.audit.problem(
                f"stage {stage}: no record says what the steps between {before.step} and {step} have read, documents "
                f"{before.document} to {first - 1}"
            )
        self.audit.reread += self._read.get((stage, step), digest) != digest
        self._read[stage, step] = digest
        if len(self._read) > REMEMBERED:
            self._read.popitem(last=False)
        known = before.step if before is not None else (step - 1 if first else 0)
        if step > known:
            self.audit.supervised_steps += step - known
            self.audit.documents += count
            self._stages[stage] = At(step, first + count)
