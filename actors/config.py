"""The ``[actors]`` table of the run file."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from broker.runfile import Table


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

    give_back: float = Field(default=30.0, gt=0)
    """Seconds after which an actor whose engine can be asked nothing leaves its prompts to the others."""

    @model_validator(mode="after")
    def _consistent(self) -> ActorsTable:
        if self.engine == "sglang" and self.launch == bool(self.servers):
            raise ValueError('engine "sglang" takes either launch = true or servers = ["http://HOST:PORT"]')
        if self.engine == "local" and (self.launch or self.servers or self.server_args):
            raise ValueError('launch, servers and server_args are for engine = "sglang"')
        return self
