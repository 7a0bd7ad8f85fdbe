"""Colocated mode: engines and learner take shifts on one set of devices.

In the learner's shift the engines rest and have given their memory back, and the model is on the device; else the model rests in the
host's memory. Whose shift it is is part of the state that the control road repeats, so a member that joins, returns or missed a message
knows it as well. A shift waits for nobody longer than ``[learner] push_timeout``: who does not answer is evicted, as in a broadcast.
A learner that dies in its shift wakes nobody: its successor does, or the engines by themselves (``broker/weights/client.py``).
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
LOOK_SECONDS = 0.005  # interval at which to check whether all have answered


class Shifts:
    """``under_way`` is whether the devices are the learner's. Without ``colocated`` they always are, and there are no shifts."""

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
        """Have the engines rest and take the devices; nothing if that is so already. ``settle`` is how many seconds actors have to
        join before that: those of a learner that has died hear of this one only now."""
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
        """Leave the devices to the engines, and publish the version that they wait for, if the shift has made one; nothing if it is not
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
        """Have the devices for the block, which may be a part of a shift."""
        mine = not self.under_way
        self.begin()
        yield
        if mine:
            self.end()

    def _resident(self) -> Residence:
        """What is moved: it is another after a stage, or a change of the model."""
        train = self._state.train
        parts = (self._state.model, train and train.optimizers, train and train.reference)
        if self._residence is None or any(a is not b for a, b in zip(parts, self._parts, strict=True)):
            self._parts, self._residence = parts, Residence(*parts, self._state.device)
        return self._residence

    def _call(self, rest: bool, settle: float = 0.0) -> None:
        """Tell whose shift it is, and wait until every actor has done accordingly; evict those who do not in time."""
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
