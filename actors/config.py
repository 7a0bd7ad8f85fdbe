"""The ``[actors]`` table of the run file."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from broker.runfile import Table


class ActorsTable(Table):
    """``count`` processes are started by ``headrace run``; each samples ``slots`` sequences at once."""

    engine: Literal["local"] = "local"
    count: int = Field(default=1, ge=0)
    update: Literal["retract", "in_place", "abort"] = "retract"
    """What becomes of running samples when weights arrive: recompute their cache, keep it, or end and ask again."""
    slots: int = Field(default=64, ge=1)
    context_length: int = Field(default=1024, ge=2)
    threads: int = Field(default=1, ge=1)
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: str = "cpu"
    queue: float = Field(default=0.5, ge=0)
    """Samples held ready beyond the slots, as a share of them."""
