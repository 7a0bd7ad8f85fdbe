"""The ``[actors]`` and ``[environments.NAME]`` tables of the run file."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field, model_validator

from broker import plugins
from broker.errors import RunFileError
from broker.runfile import RunFile, Table, parse


class ActorsTable(Table):
    """``count`` processes are started by ``headrace run``; each samples ``slots`` sequences at once."""

    engine: Literal["local", "sglang"] = "local"
    count: int = Field(default=1, ge=0)
    update: Literal["retract", "in_place", "abort"] = "retract"
    """What becomes of running samples when weights arrive: recompute their cache, keep it, or end and ask again."""
    slots: int = Field(default=64, ge=1)
    context_length: int = Field(default=1024, ge=2)
    threads: int = Field(default=1, ge=1)
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: str = "cpu"
    servers: tuple[str, ...] = ()
    """Of engine "sglang": the addresses of servers that run already (``http://HOST:PORT``)."""
    launch: bool = False
    """Of engine "sglang": start, watch and end a server beside each actor."""
    server_args: tuple[str, ...] = ()
    """Passed to the server that is launched, behind what the project sets."""
    queue: float = Field(default=0.5, ge=0)
    """Samples held ready beyond the slots, as a share of them."""
    adaptive: bool = False
    """Follow the engine's pressure: ``slots`` is what an actor begins with, and then it rises while the engine has room and falls where samples
    queue or are taken back. The cache of a local engine has room for ``slots`` and no more."""

    give_back: float = Field(default=30.0, gt=0)
    """Seconds after which an actor whose engine can be asked nothing leaves its prompts to the others."""

    @model_validator(mode="after")
    def _consistent(self) -> ActorsTable:
        if self.engine == "sglang" and self.launch == bool(self.servers):
            raise ValueError('engine "sglang" takes either launch = true or servers = ["http://HOST:PORT"]')
        if self.engine == "local" and (self.launch or self.servers or self.server_args):
            raise ValueError('launch, servers and server_args are for engine = "sglang"')
        return self


class EnvironmentTable(Table):
    """``[environments.NAME]``: the other side of a conversation. ``use`` is ``module:Class``, also of a file beside the run file; further
    keys are the class's options."""

    model_config = ConfigDict(extra="allow", frozen=True)
    use: str
    timeout: float = Field(default=10.0, gt=0)
    """Seconds that it has to open an episode or to answer a reply."""
    memory_mb: int = Field(default=1024, ge=64)
    processes: int = Field(default=2, ge=1)
    """Of each actor."""
    threads: int = Field(default=1, ge=1)
    """Calls that a process answers at the same time. With 1, episodes that share a process wait for each other's steps; an environment that waits
    for something (a tool, a service) wants many, and must then keep nothing outside of its instance that is not safe for threads."""
    seconds: float = Field(default=0.0, ge=0)
    """That an episode may take from its opening, or from the first request of an agent; 0: as long as it likes."""

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.__pydantic_extra__ or {})


def environment_tables(file: RunFile) -> dict[str, EnvironmentTable]:
    """All environments of the run file, checked as far as that needs nothing of theirs to run. Raises RunFileError."""
    raw = file.tables.get("environments", {})
    if not isinstance(raw, dict):
        raise RunFileError(f"[environments] must hold tables, not {raw!r}")
    tables = {name: parse(value, EnvironmentTable, f"[environments.{name}]") for name, value in raw.items()}
    for name, table in tables.items():
        plugins.check(table.use, list(table.options), file.base, f"[environments.{name}]", hidden=("base",))
    return tables
