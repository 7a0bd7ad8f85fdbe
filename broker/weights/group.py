"""Broadcast groups outside torch's default group, so that each membership epoch can make and drop its own."""

from __future__ import annotations

import socket
import time
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from broker.errors import WeightPushError
from broker.weights.devices import CURE
from broker.weights.sink import Lane

POLL_SECONDS = 0.001  # interval at which a collective on the device is polled
WATCHDOG = 10  # torch's own time-out, as a multiple of a push's time limit


def serve_store(host: str, timeout: float) -> Any:
    """Serve one lane's rendezvous on a free port (``.port``) of ``host`` only; torch itself would listen on every network."""
    listener = socket.create_server((host, 0), backlog=1024)
    port = listener.getsockname()[1]
    return dist.TCPStore(
        host, port, None, True, timedelta(seconds=timeout), wait_for_workers=False, master_listen_fd=listener.detach()
    )


def join(lane: Lane, store: Any = None) -> Any:
    """Enter the lane's group. Raises WeightPushError after ``lane.timeout``.

    Uses the store prefixes that torch uses for a group made on a prefixed store (``_new_process_group_helper``), as inference
    servers do, so that all kinds of receivers can share a lane. ``store`` is given by the process that serves the rendezvous.
    """
    limit = timedelta(seconds=lane.timeout)
    try:
        if store is None:
            store = dist.TCPStore(lane.host, lane.port, None, False, limit, wait_for_workers=False)
        device = "cuda" if lane.backend == "nccl" else "cpu"
        inside = store
        for part in (lane.group, f"{lane.group}/", f"{device}/"):
            inside = dist.PrefixStore(part, inside)
        if lane.backend == "nccl":
            options = dist.ProcessGroupNCCL.Options()
            options._timeout = (
                limit * WATCHDOG
            )  # torch kills the whole process after that; ``broadcast`` gives up long before
            return dist.ProcessGroupNCCL(inside, lane.rank, lane.world, options)
        gloo: Any = dist.ProcessGroupGloo
        choice = gloo._Options()
        choice._timeout = limit
        choice._devices = [gloo.create_device(hostname=_own_address(lane))]
        return gloo(inside, lane.rank, lane.world, choice)
    except (RuntimeError, dist.DistError) as error:
        raise WeightPushError(
            f"lane {lane.group} did not form within {lane.timeout} s: {str(error).splitlines()[0]}"
        ) from error


def _own_address(lane: Lane) -> str:
    """This machine's address on the network of the lane's rendezvous."""
    family, kind, protocol, _, where = socket.getaddrinfo(lane.host, lane.port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(where)  # sends nothing; the kernel chooses the way
        return str(probe.getsockname()[0])


def broadcast(group: Any, piece: torch.Tensor, timeout: float) -> None:
    """Broadcast ``piece`` from rank 0, in place. Raises WeightPushError if a peer is lost or ``timeout`` seconds pass."""
    options = dist.BroadcastOptions()
    options.rootRank = 0
    try:
        work = group.broadcast([piece], options)
        if piece.is_cuda:
            _finish(group, work, timeout)
        work.wait(timedelta(seconds=timeout))
    except (RuntimeError, dist.DistError) as error:
        says = str(error)
        if "Duplicate GPU" in says:
            raise WeightPushError(f"two ranks are on one GPU, which NCCL forbids: {CURE}") from error
        raise WeightPushError(f"broadcast broke: {says.splitlines()[0]}") from error


def _finish(group: Any, work: Any, timeout: float) -> None:
    """Wait for a collective on a GPU. It never ends if a peer has died, so ``abort`` it after ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while not work.is_completed():
        if time.monotonic() > deadline:
            group.abort()
            raise WeightPushError(f"broadcast did not end within {timeout} s")
        time.sleep(POLL_SECONDS)
