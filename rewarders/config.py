"""The ``[rewarders.NAME]`` tables of the run file."""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict, Field

from broker.errors import RunFileError
from broker.runfile import RunFile, Table, parse
from broker.spelling import nearest


class RewarderTable(Table):
    """One rewarder. ``use`` is ``module:Class``, also of a file beside the run file; further keys are the class's options.

    ``external``: it is served by a program of yours that reads trajectories and writes votes; nothing is started here.
    """

    model_config = ConfigDict(extra="allow", frozen=True)
    use: str = ""
    external: bool = False
    workers: int = Field(default=1, ge=0)
    """Daemons that ``headrace run`` starts; they share the load."""
    processes: int = Field(default=1, ge=1)
    """Judging processes of a daemon."""
    timeout: float = Field(default=10.0, gt=0)
    attempts: int = Field(default=2, ge=1)
    memory_mb: int = Field(default=1024, ge=64)

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.__pydantic_extra__ or {})


def rewarder_tables(file: RunFile) -> dict[str, RewarderTable]:
    """All rewarders of the run file. Raises RunFileError."""
    raw = file.tables.get("rewarders", {})
    if not isinstance(raw, dict):
        raise RunFileError(f"[rewarders] must hold tables, not {raw!r}")
    tables = {name: parse(value, RewarderTable, f"[rewarders.{name}]") for name, value in raw.items()}
    for name, table in tables.items():
        if bool(table.use) == table.external:
            raise RunFileError(f"[rewarders.{name}] needs either use = 'module:Class' or external = true")
    return tables


def rewarder_table(file: RunFile, name: str) -> RewarderTable:
    """The table of one rewarder. Raises RunFileError if there is none of that name."""
    tables = rewarder_tables(file)
    if name not in tables:
        raise RunFileError(f"[rewarders] has no {name!r}{nearest(name, list(tables))}")
    return tables[name]
