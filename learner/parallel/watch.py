"""Notices at once when a rank has died, even if others wait for it inside a collective without a time limit.

One thread per peer waits for a byte that is sent only at the end; if the connection breaks before, this process exits too.
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
    """Rank 0 watches all others, and they watch rank 0: if one dies, all exit with status 75 (start again)."""

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
                if self._rank == 0:  # other ranks stay silent: rank 0 reports its own end
                    log_.error("rank %d of the pool is gone; the pool ends", peer)
                logging.shutdown()
                os._exit(AWAY)

    def end(self) -> None:
        """Stop watching, so that ranks may leave. All ranks must call it at the end of their work."""
        self._over.set()
        for work in [dist.isend(torch.ones(1, dtype=torch.uint8), peer, self._group) for peer in self._peers]:
            if work is not None:
                work.wait()
        dist.barrier(self._group)
