"""The ``[rewarders.NAME]`` tables of the run file: what the rewarder is, and how its worker runs it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, Field, ModelWrapValidatorHandler, PrivateAttr, model_validator

from broker import plugins
from broker.errors import RunFileError
from broker.runfile import RunFile, Table, parse
from broker.spelling import nearest
from rewarders.beside import RUN
from rewarders.registry import clash


class WorkerTable(Table):
    """``[rewarders.NAME.worker]``: how the rewarder is run. None of this is an option of its class."""

    workers: int = Field(default=1, ge=0)
    """Daemons that ``headrace run`` starts; they share the load."""
    processes: int = Field(default=1, ge=1)
    """Judging processes of a daemon."""
    spares: int = Field(default=1, ge=0)
    """Further judging processes, started only while a sample that takes much longer than others keeps those behind it waiting."""
    timeout: float = Field(default=10.0, gt=0)
    """Seconds for one judgement (of a sample, or of a group by a rewarder of groups)."""
    start_timeout: float = Field(default=60.0, gt=0)
    """Seconds for importing and making the rewarder."""
    attempts: int = Field(default=2, ge=1)
    """How often a judgement is tried that ran out of time or killed its process."""
    memory_mb: int = Field(default=1024, ge=0)
    """Address space of a judging process once the rewarder is made; 0 sets no bound (CUDA needs that)."""
    on_timeout: Literal["", "error", "wrong"] = ""
    """What a sample gets whose judgement runs out of time or memory at every attempt while the judge judges others: an ``error`` (it leaves
    its group), or the value 0 as a ``wrong`` answer. Empty: ``wrong`` where the rewarder's class says ``bounded = True``, else ``error``."""
    group_patience: float = Field(default=1800.0, gt=0)
    """Seconds that a rewarder of groups waits for the last sample of a group."""


FLAT = ("workers", "processes", "timeout", "attempts", "memory_mb")
"""Keys of the worker that may also stand beside ``use``, as long as the class has no option of that name."""


class RewarderTable(Table):
    """One rewarder. ``use`` is ``module:Class``, also of a file beside the run file; further keys are the class's
    options.

    ``external``: a program of yours reads the trajectories and writes the votes; Headrace starts no worker. ``shadow``:
    it judges every training sample without being in the mix; its votes are recorded and shown, but never trained on.
    """

    model_config = ConfigDict(extra="allow", frozen=True)
    use: str = ""
    external: bool = False
    shadow: bool = False
    worker: WorkerTable = WorkerTable()
    _flat: tuple[str, ...] = PrivateAttr(default=())

    @model_validator(mode="wrap")
    @classmethod
    def _gather(cls, data: Any, handler: ModelWrapValidatorHandler[RewarderTable]) -> RewarderTable:
        """Move the worker's keys from beside ``use`` into ``worker``, unless that table is given."""
        if not isinstance(data, dict) or "worker" in data:
            return handler(data)
        flat = {key: data[key] for key in FLAT if key in data}
        made = handler({**{k: v for k, v in data.items() if k not in flat}, "worker": flat})
        made._flat = tuple(flat)
        return made

    @property
    def options(self) -> dict[str, Any]:
        """The options of the class."""
        return dict(self.__pydantic_extra__ or {})

    @property
    def flat(self) -> tuple[str, ...]:
        """The worker's keys that are written beside ``use``."""
        return self._flat

    @property
    def workers(self) -> int:
        return self.worker.workers


def in_run(table: RewarderTable, directory: Path) -> RewarderTable:
    """``table`` with a leading ``{run}/`` of each option replaced by ``directory``: it names what a stage will write
    there later.
    """

    def placed(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: placed(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [placed(inner) for inner in value]
        return str(directory / value.removeprefix(RUN)) if isinstance(value, str) and value.startswith(RUN) else value

    return table.model_copy(update=placed(table.options))


def rewarder_tables(file: RunFile) -> dict[str, RewarderTable]:
    """All rewarders of the run file. Raises RunFileError."""
    raw = file.tables.get("rewarders", {})
    if not isinstance(raw, dict):
        raise RunFileError(f"[rewarders] must hold tables, not {raw!r}")
    for name, value in raw.items():
        if isinstance(value, dict) and "worker" not in value:  # errors must name the key as the user wrote it
            parse({key: value[key] for key in FLAT if key in value}, WorkerTable, f"[rewarders.{name}]")
    tables = {name: parse(value, RewarderTable, f"[rewarders.{name}]") for name, value in raw.items()}
    for name, table in tables.items():
        if bool(table.use) == table.external:
            raise RunFileError(f"[rewarders.{name}] needs either use = 'module:Class' or external = true")
        if table.shadow and name in file.tables.get("run", {}).get("rewards", {}):
            raise RunFileError(
                f"[rewarders.{name}] shadow = true, and [run] rewards names it: take it out of one of the two"
            )
        _refuse_clash(name, table, file.base)
    return tables


def _refuse_clash(name: str, table: RewarderTable, base: Path) -> None:
    if table.flat and (why := clash(table.flat, plugins.fields_of(table.use, base), table.use)):
        raise RunFileError(f"[rewarders.{name}] {why.replace('NAME', name)}")


def rewarder_table(file: RunFile, name: str) -> RewarderTable:
    """The table of one rewarder. Raises RunFileError if there is none of that name."""
    tables = rewarder_tables(file)
    if name not in tables:
        raise RunFileError(f"[rewarders] has no {name!r}{nearest(name, list(tables))}")
    return tables[name]
