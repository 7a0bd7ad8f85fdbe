"""A receiver's end of the weight road: carries out the learner's orders on a ``WeightSink``, on a thread of its own."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from broker.control.client import ControlClient
from broker.control.keys import Keys
from broker.control.wire import Message
from broker.errors import HeadraceError, WeightPushError
from broker.weights.sink import Lane, Push, TensorSpec, WeightSink

log = logging.getLogger("weights")
ALONE_SECONDS = 30.0  # wake a resting sink after this much silence: the learner may have died in its shift
SILENCE = "silence"  # taken in place of an order while none comes
LOOK_SECONDS = 0.5  # interval at which to check that the learner is still alive


class WeightClient:
    """Joins as a receiver, takes pushes, and loads versions that it missed from disk. If engine and learner share a device in shifts
    (``learner/serving/shifts.py``), it makes the sink rest during the learner's shift.

    ``version`` is the newest that the sink has confirmed (-1: none). ``updated`` is called with the seconds that each update took. After
    ``alone`` seconds without a message from the learner, a resting sink is woken.
    """

    def __init__(
        self, name: str, sink: WeightSink, status: Callable[[], dict[str, Any]] = dict, keys: Keys | None = None,
        updated: Callable[[float], object] = lambda seconds: None, alone: float = ALONE_SECONDS,
    ) -> None:  # fmt: skip
        self.version = -1
        self._sink, self._updated, self._alone = sink, updated, alone
        self._turn, self._resting = 0, False
        self._disturbed = False  # told to rest and not woken since, even if it could not rest
        self._orders: queue.Queue[Message | None] = queue.Queue()
        self._lock = threading.Lock()
        self._working = self._stale = False  # working on an order; that order belongs to an earlier membership
        self.failure = ""
        """What the sink raised outside of a push that it may not raise; its daemon is to end then. Empty unless it did."""
        self._thread = threading.Thread(target=self._run, name="weights", daemon=True)
        self._thread.start()
        sparse = bool(getattr(sink, "sparse", False))
        self._client = ControlClient(
            name,
            "actor",
            receiver=sink.ranks,
            keys=keys,
            status=lambda: {**status(), "receives": self._receives, "turn": self._turn, "sparse": sparse},
            handler=self._hear,
        )

    @property
    def _receives(self) -> bool:
        return self._sink.ready and not self._resting and not self._stale

    def _hear(self, message: Message) -> None:
        """Queue a message from the learner. A new membership discards the orders queued for the old one; no push is taken until the
        order under way is done."""
        if message["k"] == "state" and message.get("joined") and not message.get("known"):
            with self._lock:
                self._stale = self._working
                with suppress(queue.Empty):  # the other thread takes from it too
                    while True:
                        self._orders.get_nowait()
        self._orders.put(message)

    @property
    def joined(self) -> bool:
        """Whether the learner knows this receiver."""
        return self._client.joined

    @property
    def refused(self) -> str:
        """Why the learner refuses this daemon; empty unless it does."""
        return self._client.refused

    def connect(self, endpoint: str) -> None:
        self._client.connect(endpoint)

    def load(self, path: Path, version: int) -> None:
        """Load weights from the directory ``path`` if ``version`` is newer than the current one. Raises WeightPushError."""
        if version > self.version:
            with self._timed():
                self._sink.load(path, version)
            self.version = version

    def close(self) -> None:
        self._client.close()
        self._orders.put(None)
        self._thread.join(5)

    def _run(self) -> None:
        while (order := self._next()) is not None:
            kind = str(order.pop("k"))
            try:
                self._take(kind, order)
            except HeadraceError as error:
                log.warning("%s: %s", kind, error)
            except (KeyError, TypeError, ValueError) as error:
                log.warning("malformed order %s: %s", kind, error)
            except Exception as error:  # an engine out of memory, say: without this thread it would never wake
                log.exception("%s", kind)
                self.failure = f"{kind}: {type(error).__name__}: {error}"
            self._finish()

    def _next(self) -> Message | None:
        """The next order; ``silence`` if none came for a while to a sink that may rest."""
        try:
            order = self._orders.get(timeout=LOOK_SECONDS if self._disturbed else None)
        except queue.Empty:
            return {"k": SILENCE}
        if order is not None:
            with self._lock:
                self._working = True
        return order

    def _finish(self) -> None:
        """Called after each order; after a stale one, tells the learner that pushes can be taken again."""
        with self._lock:
            stale, self._working, self._stale = self._stale, False, False
        if stale:
            self._client.beat()

    def _take(self, kind: str, order: Message) -> None:
        if kind == SILENCE:
            self._notice_loss()
        elif kind == "lane":
            self._join(Lane(**order))
        elif kind == "push":
            self._push(order)
        elif kind == "fetch":
            self._fetch(**order)
        elif kind == "state":
            self._take_turns(order)
            if not self._resting and order["version"] > self.version and order["path"] and self._orders.empty():
                self.load(Path(order["path"]), order["version"])

    def _take_turns(self, state: Message) -> None:
        """Rest during the learner's shift, and confirm it; an older message is ignored."""
        turn, rest = int(state.get("turn", 0)), bool(state.get("rest", False))
        if turn < self._turn and not state.get("joined"):
            return
        if rest and not self._resting:
            self._disturbed = True
            self._sink.rest()
            self._resting = True
        elif not rest and self._disturbed:
            self._wake(int(state.get("coming", -1)), float(state.get("patience", 0.0)))
        if turn != self._turn:
            self._turn = turn
            self._client.beat()

    def _wake(self, version: int, patience: float) -> None:
        self._sink.wake(version, patience)
        self._resting = self._disturbed = False

    def _notice_loss(self) -> None:
        """Wake the sink if the learner has been silent for too long: it may have died in its shift."""
        silence = time.monotonic() - self._client.heard
        if silence > self._alone:
            log.warning(
                "nothing was heard of the learner for %.0f s: sampling goes on without waiting for the end of its shift",
                silence,
            )
            self._wake(-1, 0.0)
            self._turn = 0

    def _join(self, lane: Lane) -> None:
        with self._acknowledging(what="lane", epoch=lane.epoch):
            self._sink.join(lane)

    def _fetch(self, version: int, path: str, epoch: int) -> None:
        with self._acknowledging(what="push", version=version, epoch=epoch):
            self.load(Path(path), version)

    @contextmanager
    def _timed(self) -> Iterator[None]:
        """Report the seconds that the block took, unless it fails."""
        started = time.monotonic()
        yield
        self._updated(time.monotonic() - started)

    @contextmanager
    def _acknowledging(self, **ack: Any) -> Iterator[dict[str, Any]]:
        """Tell the learner whether the block succeeded; the message includes what the block puts into the map."""
        try:
            if self._resting:
                raise WeightPushError("the engine rests: it is the learner's shift")
            yield ack
        except HeadraceError as error:
            self._refuse(ack, error)
            raise
        except Exception as error:  # an engine out of memory, say: the learner would wait for the answer
            failure = WeightPushError(f"{type(error).__name__}: {error}")
            self._refuse(ack, failure)
            raise failure from error
        self._client.send("ack", **ack, ok=True)

    def _refuse(self, ack: Message, why: HeadraceError) -> None:
        self._client.send("ack", **ack, ok=False, error=str(why)[:500], receives=self._receives)

    def _push(self, order: Message) -> None:
        epoch = order.pop("epoch")
        specs = tuple(TensorSpec(name, dtype, tuple(shape)) for name, dtype, shape in order.pop("specs"))
        push = Push(specs=specs, **order)
        with self._acknowledging(what="push", version=push.version, epoch=epoch) as ack:
            try:
                with self._timed():
                    ack["checksum"] = self._sink.receive(push)
            except Exception:
                self._sink.leave()
                raise
            self.version = push.version
