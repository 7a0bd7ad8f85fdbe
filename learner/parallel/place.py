"""Finds out which rank of a pool this process is, from torchrun's environment variables. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from broker.errors import RunFileError
from monitoring.daemon import PARENT

AGENT = "TORCHELASTIC_RUN_ID"
"""A variable that torchrun's agent sets for the processes that it starts."""


@dataclass(frozen=True, slots=True)
class Place:
    """``rank`` of ``world`` ranks, the ``local``-th on its machine; rank 0 listens at ``host:port`` unless its agent does."""

    rank: int
    world: int
    local: int
    host: str
    port: int
    served: bool
    """Whether torchrun's agent serves the rendezvous."""


def find_place(environment: Mapping[str, str] = os.environ) -> Place | None:
    """The place of this process; None if it is the only one. Raises RunFileError if variables are missing or invalid."""
    if int(environment.get("WORLD_SIZE") or 1) <= 1:
        return None
    try:
        return Place(
            int(environment["RANK"]),
            int(environment["WORLD_SIZE"]),
            int(environment.get("LOCAL_RANK") or 0),
            environment["MASTER_ADDR"],
            int(environment["MASTER_PORT"]),
            environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
        )
    except (KeyError, ValueError) as error:
        raise RunFileError(f"WORLD_SIZE is set, but the environment of a pool lacks {error}; use torchrun") from None


def follow_agent() -> None:
    """Make ``die_with_parent`` watch torchrun's agent, unless another parent is set already."""
    if AGENT in os.environ:
        os.environ.setdefault(PARENT, str(os.getppid()))
