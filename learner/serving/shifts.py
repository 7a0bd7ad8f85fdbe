"""Colocated mode: engines and learner take shifts on one set of devices.

During the learner's shift the engines rest, with their device memory released, and the model is on the device; otherwise the model is
in host memory. The control road repeats whose shift it is, so that a member that joins, returns or missed a message knows it too.
A change of shift waits at most ``[learner] push_timeout`` for the members, and evicts those that do not answer, as in a broadcast.
If a learner dies in its shift, its successor wakes the engines, or they wake by themselves (``broker/weights/client.py``).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from broker.control.server import ControlServer, Member
from learner.serving.road import Road
from learner.tables import LearnerTable
from learner.telemetry import Telemetry
from learner.training.residence import Residence
from learner.training.state import LearnerState
from monitoring.daemon import Stop

log = logging.getLogger("learner")
LOOK_SECONDS = 0.005  # interval of checking whether all members have answered


class Shifts:
    """``under_way``: whether it is the learner's shift. Without ``colocated`` there are no shifts, and the methods have no effect."""

    def __init__(
        self, control: ControlServer, state: LearnerState, table: LearnerTable, telemetry: Telemetry, stop: Stop, road: Road
    ) -> None:  # fmt: skip
        self.control, self.colocated, self.under_way = control, table.colocated, False
        self._state, self._patience, self._road = state, table.push_timeout, road
        self._telemetry, self._stop = telemetry, stop
        self._number = 0
        self._begun, self._version = 0.0, -1  # when the shift began, and the version then
        self._parts: tuple[Any, ...] = ()
        self._residence: Residence | None = None

    def begin(self, settle: float = 0.0) -> None:
        """Make the engines rest and move the model to the devices; no effect if it is the learner's shift already. ``settle`` is the
        time in seconds for actors to join first: those of a dead learner learn only now of this one."""
        if not self.colocated or self.under_way:
            return
        self._begun, self._version = time.monotonic(), self._state.progress.version
        with self._telemetry.waiting("shift"):
            while not self._road.settled(0.2) and not self._stop:
                pass
            self._call(rest=True, settle=settle)
        if self._residence is not None:
            self._resident().to_device()
        self.under_way = True

    def end(self) -> None:
        """Give the devices back to the engines, and publish the version that they wait for if the shift made one. No effect if it is not
        the learner's shift."""
        if not self.under_way:
            return
        self.under_way = False
        self._resident().to_host()
        with self._telemetry.waiting("shift"):
            self._call(rest=False)
        self._telemetry.shift(time.monotonic() - self._begun)
        if self._state.progress.version != self._version:
            self._road.publish(self._state.progress.version)

    @contextmanager
    def shift(self) -> Iterator[None]:
        """Hold the devices during the block: in the shift under way, or in one of its own."""
        mine = not self.under_way
        self.begin()
        yield
        if mine:
            self.end()

    def _resident(self) -> Residence:
        """What is moved between device and host; made anew when the model, the optimizers or the reference change."""
        train = self._state.train
        parts = (self._state.model, train and train.optimizers, train and train.reference)
        if self._residence is None or any(a is not b for a, b in zip(parts, self._parts, strict=True)):
            self._parts, self._residence = parts, Residence(*parts, self._state.device)
        return self._residence

    def _call(self, rest: bool, settle: float = 0.0) -> None:
        """Announce whose shift it is, wait until every actor has acted on it, and evict those that do not in time."""
        self._number += 1
        version = self._state.progress.version
        self.control.announce(turn=self._number, rest=rest, coming=version, patience=self._patience)
        self._stop.wait(settle)
        behind = self._behind()
        deadline = time.monotonic() + self._patience
        missing = {member.name for member in behind}
        while behind and time.monotonic() < deadline and not self._stop:
            time.sleep(LOOK_SECONDS)
            behind = self._behind()
            missing |= {member.name for member in behind}
        if self._stop:
            return
        for name in sorted(missing - {m.name for m in self.control.members() if self._is_done(m)}):
            if self.control.evict(name):
                log.warning("evicting %s: it did not %s in time", name, "rest" if rest else "wake")
                self._telemetry.evicted(name)

    def _behind(self) -> list[Member]:
        return [m for m in self.control.members() if m.role == "actor" and not self._is_done(m)]

    def _is_done(self, member: Member) -> bool:
        return member.status.get("turn") == self._number
