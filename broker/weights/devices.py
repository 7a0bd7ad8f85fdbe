"""Finds the GPU of each rank of the weight road: NCCL accepts neither two ranks on one GPU nor a rank on a CPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from broker.control.server import Member
from broker.errors import RunFault

CURE = (
    'set [learner] backend = "gloo" (through the host\'s memory) or road = "disk", give each a device of its own, or have them share it in shifts '
    "([learner] colocated = true)"
)


def gpu_of(device: str) -> str:
    """The UUID of a CUDA device; empty for a CPU."""
    if torch.device(device).type != "cuda":
        return ""
    return str(torch.cuda.get_device_properties(device).uuid)


def check_members(device: str, members: Sequence[Member]) -> None:
    """Raises RunFault, with the cure, if NCCL cannot broadcast from ``device`` to one of ``members``.

    A receiver that does not report its GPU (a server elsewhere) passes; NCCL then reports the problem itself (``group.broadcast``).
    """
    refuse_shared(gpu_of(device), members)


def refuse_shared(own: str, members: Sequence[Member]) -> None:
    """Like ``check_members``, for a broadcast from the device with the UUID ``own``."""
    taken = {own: "the learner"}
    for member in members:
        gpu = member.status.get("gpu")
        if not isinstance(gpu, str):
            continue
        if not gpu:
            raise RunFault(f"NCCL cannot bring weights to {member.name}, which is on a CPU: {CURE}")
        if gpu in taken:
            raise RunFault(f"{member.name} and {taken[gpu]} are on one GPU ({gpu}), which NCCL forbids: {CURE}")
        taken[gpu] = member.name
