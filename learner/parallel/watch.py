"""Notices at once when a rank has died, also where the others wait for it inside of a collective that knows no end.

A thread a peer waits for a byte that comes only at the end: a connection that breaks before ends this process too.
"""

from __future__ import annotations

import logging
import os
import threading
from typing import Any

import torch
import torch.distributed as dist

from broker.daemon import AWAY

log_ = logging.getLogger("learner")


class Watch:
    """Rank 0 watches everybody, the others watch rank 0: whoever dies, all end with status 75 (start again)."""

    def __init__(self, group: Any) -> None:
        self._group, self._rank = group, dist.get_rank(group)
        self._over = threading.Event()
        peers = range(1, dist.get_world_size(group)) if self._rank == 0 else [0]
        self._peers = list(peers)
        for peer in self._peers:
            threading.Thread(target=self._wait, args=(peer,), name=f"watch-{peer}", daemon=True).start()

    def _wait(self, peer: int) -> None:
        try:
            dist.recv(torch.zeros(1, dtype=torch.uint8), peer, self._group)
        except RuntimeError:
            if not self._over.is_set():
                if self._rank == 0:  # what ends rank 0, it says itself
                    log_.error("rank %d of the pool is gone; the pool ends", peer)
                logging.shutdown()
                os._exit(AWAY)

    def end(self) -> None:
        """From now on a rank that leaves is no failure. Called by all ranks at the end of their work."""
        self._over.set()
        for work in [dist.isend(torch.ones(1, dtype=torch.uint8), peer, self._group) for peer in self._peers]:
            if work is not None:
                work.wait()
        dist.barrier(self._group)
