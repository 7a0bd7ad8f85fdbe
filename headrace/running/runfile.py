"""A whole run file, checked at once before anything is started. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from actors.config import ActorsTable, environment_tables
from broker import plugins
from broker.errors import RunFileError
from broker.open import engine_of
from broker.runfile import BrokerTable, RunFile, RunTable
from broker.spelling import nearest
from learner.config import LearnerConfig
from learner.tables import check_named
from rewarders.config import RewarderTable, rewarder_tables

DATA_SUFFIXES = (".json", ".jsonl", ".parquet", ".csv")
TAKEN = ("learner", "actor")  # daemons of other roles are called so
LONGEST = 200
OF_TABLES = {"split", "config"}
"""Options of a source's ``path``, which the class that reads it does not have."""


@dataclass(frozen=True, slots=True)
class WholeRun:
    """Every table of a run file."""

    file: RunFile
    run: RunTable
    broker: BrokerTable
    actors: ActorsTable
    rewarders: dict[str, RewarderTable]
    learner: LearnerConfig


def check(file: RunFile) -> WholeRun:
    """Raises RunFileError for the first mistake: table, key, value, and the fix."""
    run, broker = file.table("run", RunTable), file.table("broker", BrokerTable)
    actors, rewarders = file.table("actors", ActorsTable), rewarder_tables(file)
    learner = LearnerConfig(file)
    if not learner.stages:
        raise RunFileError(f"{file.path}: there is no [[stage]]; add one of kind 'sft', 'rl' or 'evaluate'")
    for name in run.rewards:
        if name not in rewarders:
            raise RunFileError(
                f"[run] rewards names {name!r}, but there is no [rewarders.{name}]{nearest(name, list(rewarders))}"
            )
    check_path(run.model, "[run]", "model", file)
    if ":" in learner.learner.road:
        plugins.check(learner.learner.road, (), file.base, "[learner] road", hidden=("control",))
    if broker.url:
        engine_of(broker.url, broker.engines)
    for scheme, use in broker.engines.items():
        plugins.check(use, (), file.base, f"[broker] engines.{scheme}")
    for name, table in rewarders.items():
        if not table.external:
            _daemon_name(name)
            plugins.check(table.use, table.options, file.base, f"[rewarders.{name}]")
    _sources(learner, file, rewarders)
    _environments(learner, file)
    _stages(learner, run, rewarders)
    return WholeRun(file, run, broker, actors, rewarders, learner)


def _daemon_name(rewarder: str) -> None:
    """A rewarder's daemons, and their files, are called by its name."""
    if rewarder in TAKEN:
        raise RunFileError(
            f"[rewarders.{rewarder}] has the name of another daemon, {rewarder}-0: call the table otherwise"
        )
    if not rewarder.isprintable() or "/" in rewarder or rewarder[:1] in ("", "-") or len(rewarder.encode()) > LONGEST:
        raise RunFileError(
            f"[rewarders] {rewarder!r} is no name for a daemon's files: use letters, digits and ._-, at most {LONGEST}, with no - in front"
        )


def _sources(learner: LearnerConfig, file: RunFile, rewarders: Mapping[str, RewarderTable]) -> None:
    for name, source in learner.data.items():
        where = f"[data.{name}]"
        check_named(source, where)
        rule = source.select.curriculum
        if rule is not None and rule.rewarder not in rewarders:
            raise RunFileError(
                f"{where} select.curriculum.rewarder = {rule.rewarder!r}, but there is no [rewarders.{rule.rewarder}]"
                f"{nearest(rule.rewarder, list(rewarders))}"
            )
        if source.use:
            options = source.options.keys() - (OF_TABLES if source.path else set())
            plugins.check(source.use, options, file.base, where, hidden=("rows", "where") if source.path else ())
        if source.path:
            check_path(source.path, where, "path", file)


def _environments(learner: LearnerConfig, file: RunFile) -> None:
    known = environment_tables(file)
    for name, source in learner.data.items():
        if source.environment and source.environment not in known:
            raise RunFileError(
                f"[data.{name}] environment = {source.environment!r}, but there is no [environments.{source.environment}]"
                f"{nearest(source.environment, list(known))}"
            )


def _stages(learner: LearnerConfig, run: RunTable, rewarders: Mapping[str, RewarderTable]) -> None:
    """Names of stages, of what they read, and of who judges."""
    names = [stage.name for stage in learner.stages]
    mixes = [run.rewards, *learner.mixes()]
    judging = {name for mix in mixes for name in mix}
    for index, stage in enumerate(learner.stages):
        if names.index(stage.name) != index:
            raise RunFileError(f"[[stage]] {index} name = {stage.name!r} is taken by another stage")
        training = learner.training(index)
        if training is not None:
            training.objective.check(f"[[stage]] {stage.name} learner.objective")
            if not run.rewards:
                raise RunFileError("[run] rewards is empty: reinforcement learning needs at least one rewarder")
        stage.check(learner.file.base)
        asked = {benchmark.rewarder for benchmark in getattr(stage, "asked", dict)().values()}
        for key, judge in stage.judges().items():
            if judge in asked and judge not in rewarders:
                raise RunFileError(
                    f"[[stage]] {stage.name} {key} = {judge!r}, but there is no [rewarders.{judge}]"
                    f"{nearest(judge, list(rewarders))}"
                )
            if judge not in judging and judge not in asked:
                hint = nearest(judge, sorted(judging))
                raise RunFileError(
                    f"[[stage]] {stage.name} {key} = {judge!r} is not in [run] rewards, and so judges nothing{hint}"
                )
        for key, source in stage.sources().items():
            if source not in learner.data and source not in names[:index]:
                raise RunFileError(
                    f"[[stage]] {stage.name} {key} = {source!r} is not in [data], nor an earlier stage"
                    f"{nearest(source, list(learner.data))}"
                )


def check_path(value: str, where: str, key: str, file: RunFile) -> None:
    """``value`` is a path or a Hugging Face id; what can only be a path must exist. Raises RunFileError."""
    path = file.resolve(value)
    if path.exists() or Path(value).exists():
        return
    if value.startswith(("/", "./", "../", "~")) or value.endswith(DATA_SUFFIXES):
        there = sorted(p.name for p in path.parent.iterdir()) if path.parent.is_dir() else []
        raise RunFileError(f"{where} {key} = {value!r}: {path} does not exist{_hint(path.name, there)}")


def _hint(name: str, there: list[str]) -> str:
    hint = nearest(name, there)
    return hint if "did you mean" in hint else ""  # a whole directory's names would be no help
