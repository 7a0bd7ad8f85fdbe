"""Connects the ranks of a pool: one rendezvous, NCCL if there are GPUs, and gloo for all small messages."""

from __future__ import annotations

import json
import os
import socket
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from learner.parallel.channel import Channel
from learner.parallel.place import Place
from learner.parallel.pool import Pool
from learner.parallel.watch import Watch

START_SECONDS = 600.0  # time for all ranks to load torch and meet
# Waiting for an order may take long, as rank 0 waits for samples; sending one takes no time.
FOREVER = timedelta(days=3650)
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def join(place: Place, device: str = "", timeout: float = 0.0) -> Pool:
    """Connect to the other ranks. Rank 0 gives the ``device`` (``cpu`` or ``cuda``) and the ``timeout`` of a collective in seconds; the
    other ranks take both from it."""
    if place.host in LOOPBACK:
        for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            os.environ.setdefault(name, "lo")
    store = _store(place)
    if place.rank == 0:
        store.set("pool", json.dumps({"device": device, "timeout": timeout}))
    store.set(f"here/{place.rank}", "")
    store.wait([f"here/{rank}" for rank in range(place.world)])  # wait for a late rank here, not inside a collective
    told = json.loads(store.get("pool"))
    device, limit = told["device"], timedelta(seconds=told["timeout"])
    if device == "cuda":
        torch.cuda.set_device(place.local)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo",
        store=store, rank=place.rank, world_size=place.world, timeout=limit,
    )  # fmt: skip
    mesh = init_device_mesh(device, (place.world,), mesh_dim_names=("shard",))
    patience = (FOREVER if place.rank else limit, limit, FOREVER)
    orders, writers, watch = (dist.new_group(backend="gloo", timeout=each) for each in patience)
    return Pool(mesh, Channel(orders), Channel(writers), Watch(watch))


def _store(place: Place) -> Any:
    """The store where the ranks meet, served by torchrun's agent or by rank 0, which listens on the rendezvous address only."""
    limit = timedelta(seconds=START_SECONDS)
    if place.served or place.rank:
        store = dist.TCPStore(place.host, place.port, None, False, limit, wait_for_workers=False)
    else:
        listener = socket.create_server((place.host, place.port), backlog=1024)
        store = dist.TCPStore(
            place.host, place.port, None, True, limit, wait_for_workers=False, master_listen_fd=listener.detach()
        )
    return dist.PrefixStore(f"headrace/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
