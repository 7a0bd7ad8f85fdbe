"""Plans while the main thread executes: reads, joins, feeds, and writes manifests ahead. On a thread of its own, or round by round by hand."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any, TypeVar

from broker.errors import DataError, LogUnavailable, WriteInterrupted
from broker.messages import Ending, Manifest
from learner.planning.again import Found
from learner.planning.collect import Collection, Collections, Finish
from learner.planning.feed import Feeding
from learner.planning.planner import Planner
from learner.planning.plans import Planned, StagePlan

log = logging.getLogger("log")
learner_log = logging.getLogger("learner")
STALL_SECONDS = 3.0
LOST_LOOK_SECONDS = 5.0  # interval at which to check for lost samples
GATHER_SECONDS = (
    0.01  # records that come one by one are handled in batches, because the trainer's thread needs the interpreter too
)
T = TypeVar("T")


class Planning:
    """What the learner asks of its planner. Here all of it is done on the caller's thread, a round whenever somebody waits.

    ``ahead`` is how many steps are planned before they are taken; ``resting`` tells whether the engines rest, so that nobody can answer;
    ``aside(offset, stage)`` finds a step that was set aside and is to be tried again (``learner.planning.again``). ``idle`` is called while
    there is nothing to do, and runs a round of whatever else works on this thread.
    """

    def __init__(
        self,
        planner: Planner,
        collections: Collections,
        on_ending: Callable[[Ending], None],
        ahead: int = 1,
        resting: Callable[[], bool] = lambda: False,
        idle: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.time,
        aside: Callable[[int, int], Found] | None = None,
    ) -> None:
        self._clock, self._aside = clock, aside
        self._planner, self._collections, self._on_ending = planner, collections, on_ending
        self._steps_ahead, self._resting, self._idle = ahead, resting, idle
        self._planned: queue.SimpleQueue[Planned] = queue.SimpleQueue()
        self._stage: StagePlan | None = None
        self._last_round = self._looked = clock()

    # -- what stages ask for -------------------------------------------------------------------------------------------

    def begin(self, stage: StagePlan | None) -> None:
        """Plan steps of ``stage`` from now on (None: of no stage)."""
        self.call(lambda: setattr(self, "_stage", stage))

    def collect(self, collection: Collection, finish: Finish, feeding: Feeding, questions: int, version: int) -> None:
        """Ask the first ``questions`` rows for a collection; what is already under way of it goes on."""

        def begin() -> None:
            self._planner.ask_collection(feeding, questions, version)
            self._collections.expect(collection, finish)

        self.call(begin)

    def pending(self) -> tuple[str, ...]:
        """The collections under way."""
        return self.call(lambda: self._collections.pending)

    def executed(self, manifest: Manifest) -> None:
        """The learner holds this manifest's version now."""
        self.call(lambda: self._planner.executed_step(manifest))

    def release(self, rewarders: frozenset[str]) -> None:
        """No group waits for these rewarders any longer: they have left the run file."""
        self.call(lambda: self._planner.release(rewarders))

    def close_stage(self, stage: int, requested: Iterable[str] = ()) -> Planned:
        """The durable end of a stage, and of the collections that a learner before this one began, and that are neither under way nor
        ``requested`` now: nobody asks for them any longer."""
        return self.call(lambda: self._planner.close(stage, {*self._collections.pending, *requested}))

    def order_weights(self, stage: int, where: str) -> Planned:
        """The durable order that the next version is what lies in ``where``."""
        return self.call(lambda: self._planner.weights(stage, where))

    def next(self, timeout: float) -> Planned | None:
        """The next planned step, or None if there is none within ``timeout`` seconds. Raises what stopped the planner."""
        deadline = time.monotonic() + timeout
        while True:
            self.check()
            self.round(0.0)
            try:
                return self._planned.get_nowait()
            except queue.Empty:
                if time.monotonic() >= deadline:
                    return None
                self._idle()

    def is_ready(self) -> bool:
        """Whether all steps of the next shift are planned (without shifts: whether one is)."""
        self.check()
        stage = self._stage
        at_end = stage is not None and self._planner.planned >= stage.last_step
        return self._planned.qsize() >= (1 if at_end else self._steps_ahead)

    def call(self, action: Callable[[], T]) -> T:
        """Run ``action`` on the planner's thread, and return what it returns (or raise what it raises)."""
        return action()

    def wait(self, seconds: float) -> None:
        """Let time pass until somebody looks again."""
        self.round(0.0)
        self._idle()

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def check(self) -> None:
        """Raises what stopped the planner."""

    # -- rounds --------------------------------------------------------------------------------------------------------

    def round(self, timeout: float = 0.02) -> None:
        """Read what has come, waiting at most ``timeout`` seconds for it, and plan with it."""
        planner, now = self._planner, self._clock()
        self._notice_stall()
        if planner.join.pump(timeout) and timeout:
            time.sleep(GATHER_SECONDS)
            planner.join.pump(timeout=0.0)
        for ending in self._collections.settle(now):
            self._on_ending(ending)
        planner.bury()
        if now - self._looked > LOST_LOOK_SECONDS:
            self._looked = now
            planner.ask_again(now)
        stage = self._stage
        if stage is not None:
            planner.expire(stage.training, now)
            planner.refill(stage)
            if planner.planned < stage.last_step and self._planned.qsize() < self._steps_ahead:
                planned = self._again(stage) or planner.plan(stage)
                if planned is not None:
                    self._planned.put(planned)
        self._notice_stall()
        self._last_round = self._clock()

    def _again(self, stage: StagePlan) -> Planned | None:
        """The next step that somebody wants tried again, planned anew; None if there is none, or it cannot be."""
        while self._aside is not None and self._planner.join.steps_again:
            name, offset = self._planner.join.steps_again.pop(0)
            try:
                manifest, groups = self._aside(offset, stage.index)
            except DataError as error:
                learner_log.warning("%s is not tried again: %s", name, error)
                continue
            planned = self._planner.train_again(stage.index, manifest, groups)
            learner_log.info("%s, which was set aside, is tried again as step %d", name, planned.manifest.step)
            return planned
        return None

    def _notice_stall(self) -> None:
        """If the log was away, between two rounds or in the middle of one, or engines rest, nobody can answer: deadlines begin anew."""
        now = self._clock()
        if now - self._last_round > STALL_SECONDS or self._resting():
            self._planner.restart_deadlines(now)
            self._collections.restart_deadlines(now)


class PlanningThread(Planning):
    """The same on a thread of its own, which owns the planner: every access to it runs there, through ``call``."""

    def __init__(self, *arguments: Any, log_away: Callable[[bool], None] = lambda away: None, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = queue.SimpleQueue()
        self._stop_flag = threading.Event()
        self.failure: BaseException | None = None
        self._log_away = log_away
        self._thread = threading.Thread(target=self._run, name="planner", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop_flag.set()
        if self._thread.is_alive():
            self._thread.join(10)

    def call(self, action: Callable[[], T]) -> T:
        future: Future[T] = Future()
        self._calls.put((action, future))
        while True:
            try:
                return future.result(timeout=0.2)
            except TimeoutError:
                self.check()

    def next(self, timeout: float) -> Planned | None:
        try:
            return self._planned.get(timeout=timeout) if timeout else self._planned.get_nowait()
        except queue.Empty:
            self.check()
            return None

    def wait(self, seconds: float) -> None:
        self._stop_flag.wait(seconds)
        self.check()

    def check(self) -> None:
        if self.failure is not None:
            raise self.failure

    def _run(self) -> None:
        try:
            while not self._stop_flag.is_set():
                try:
                    self._answer_calls()
                    self.round()
                    self._log_away(False)
                except WriteInterrupted:  # the books are ahead of the log: another round would decide the same twice
                    raise
                except LogUnavailable as error:
                    self._log_away(True)
                    log.warning("waiting for the log: %s", error)
                    self._stop_flag.wait(1.0)
        except BaseException as error:  # the main thread raises it: nothing is hidden here
            self.failure = error

    def _answer_calls(self) -> None:
        while not self._calls.empty():
            action, future = self._calls.get()
            try:
                future.set_result(action())
            except BaseException as error:  # it belongs to the caller
                future.set_exception(error)
                if isinstance(error, WriteInterrupted):
                    raise
