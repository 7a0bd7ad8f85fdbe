"""All that the learner takes from the run file, checked and resolved once: sources, ``[learner]``, stages and what each trains by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from broker import plugins
from broker.errors import RunFileError
from broker.runfile import RunFile, parse
from broker.spelling import nearest
from learner.stages.stage import KINDS, Stage
from learner.tables import RENAMED, LearnerTable, SourceTable, Training, for_whole_run


class LearnerConfig:
    """Raises RunFileError. ``stages`` in order; ``training(stage)`` is what a stage trains by."""

    def __init__(self, file: RunFile) -> None:
        self.file = file
        raw = file_table(file.tables.get("learner", {}), "[learner]")
        _refuse_renamed(raw, "[learner]")
        self.learner = parse(raw, LearnerTable, "[learner]")
        self.data = self._sources()
        self.stages = self._stages()
        own = {key: value for key, value in raw.items() if key in Training.model_fields}
        self._training = [stage.training(lambda over, s=stage: self._resolved(own, over, s)) for stage in self.stages]  # type: ignore[misc]

    def mixes(self) -> list[Mapping[str, float]]:
        """The reward mixes that sources and stages name themselves, beside that of ``[run]``."""
        of_data = [table.rewards for table in self.data.values() if table.rewards is not None]
        return [*of_data, *(mix for stage in self.stages for mix in stage.mixes())]

    def judging(self, mix: Mapping[str, float]) -> set[str]:
        """Every rewarder that some group may wait for, where ``mix`` is that of ``[run]``: those of a mix, and the stages' judges."""
        of_mixes = {name for one in (mix, *self.mixes()) for name in one}
        return of_mixes | {name for stage in self.stages for name in stage.judges().values()}

    def training(self, stage: int) -> Training | None:
        """What stage number ``stage`` trains by; None if it trains nothing."""
        return self._training[stage]

    def _sources(self) -> dict[str, SourceTable]:
        raw = file_table(self.file.tables.get("data", {}), "[data]")
        return {
            name: parse({"path": value} if isinstance(value, str) else value, SourceTable, f"[data.{name}]")
            for name, value in raw.items()
        }

    def _stages(self) -> list[Stage]:
        raw = self.file.tables.get("stage", [])
        return [
            read_stage(table, number, self.file) for number, table in enumerate(raw if isinstance(raw, list) else [raw])
        ]

    def _resolved(self, base: Mapping[str, Any], over: Mapping[str, Any], stage: Stage) -> Training:
        """``[learner]`` with the stage's own keys in place."""
        where = f"[[stage]] {stage.name} learner"
        _refuse_renamed(over, where)
        for key in over:
            if key in for_whole_run():
                raise RunFileError(f"{where}.{key} holds for the whole run: set it in [learner]")
        training = parse(merge(base, over), Training, where)
        if training.sampling.top_p < 1:
            raise RunFileError(
                f"{where} sampling.top_p = {training.sampling.top_p}: training needs top_p = 1. What it cuts off has no probability in the policy "
                "that sampled, and engines report the rest before or after the cut, so every importance weight would be wrong; an evaluation "
                "may use it"
            )
        return training.model_copy(update={"objective": training.objective.beside(self.file.base)})

    def benchmarks(self) -> dict[str, int]:
        """The sources that some stage asks as held-out questions, and how many of their rows at most."""
        found: dict[str, int] = {}
        for stage in self.stages:
            for benchmark in getattr(stage, "asked", dict)().values():
                found[benchmark.data] = max(benchmark.questions, found.get(benchmark.data, 0))
        return found


def read_stage(table: Any, number: int, file: RunFile) -> Stage:
    """``[[stage]]`` number ``number`` as the class of its kind. Raises RunFileError."""
    where = f"[[stage]] {number}"
    table = file_table(table, where)
    kind = str(table.get("kind", ""))
    if ":" in kind:
        found = plugins.load(kind, file.base, f"{where} kind")
    elif kind in KINDS:
        found = plugins.load(KINDS[kind], file.base, where)
    else:
        raise RunFileError(f"{where} kind = {table.get('kind')!r}{nearest(kind, list(KINDS))}")
    if not (isinstance(found, type) and issubclass(found, Stage)):
        raise RunFileError(f"{where} kind = {kind!r} is no stage: inherit from learner.stages.stage.Stage")
    return parse({"name": f"{number}-{kind.rpartition(':')[2]}", **table}, found, where)


def _refuse_renamed(table: Mapping[str, Any], where: str) -> None:
    for old, new in RENAMED.items():
        if old in table:
            raise RunFileError(f"{where} {old} has another name now: write {new} = {table[old]!r}")


def file_table(raw: Any, where: str) -> dict[str, Any]:
    """``raw`` if it is a table. Raises RunFileError."""
    if not isinstance(raw, dict):
        raise RunFileError(f"{where} must be a table, not {raw!r}")
    return raw


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with the keys of ``over`` in place, table by table."""
    out = dict(base)
    for key, value in over.items():
        old = out.get(key)
        out[key] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return out
