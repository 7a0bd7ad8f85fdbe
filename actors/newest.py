"""The newest published policy, as all threads of an actor know it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from actors.policy import PolicyFollower
from broker.messages import PolicyVersion

log_ = logging.getLogger("actor")
NEWER_SECONDS = 5.0  # how long to wait for a newer policy where the one that was found cannot be read
Made = TypeVar("Made")


class NewestPolicy:
    """Set by the thread that follows the ``policy`` topic, read by all."""

    def __init__(self, policy: PolicyVersion) -> None:
        self._lock, self._policy = threading.Lock(), policy

    def set(self, policy: PolicyVersion) -> None:
        with self._lock:
            self._policy = policy

    def get(self) -> PolicyVersion:
        with self._lock:
            return self._policy

    @property
    def path(self) -> Path:
        return Path(self.get().path)

    @property
    def weights(self) -> tuple[Path, int]:
        """Where they lie, and their version."""
        policy = self.get()
        return Path(policy.path), policy.version

    def use(self, follower: PolicyFollower, use: Callable[[], Made]) -> Made:
        """The result of ``use`` with the newest published policy: the files of an older one may be removed while they are read.

        Raises what ``use`` raises where the files are still there, or no newer ones come.
        """
        while True:
            if (newer := follower.poll(0.0)) is not None:
                self.set(newer)
            tried = self.get()
            try:
                return use()
            except Exception as error:
                newer = None if Path(tried.path).exists() else follower.poll(NEWER_SECONDS)
                if newer is None:
                    raise
                log_.info("version %d is gone already: %s", tried.version, error)
                self.set(newer)
