"""The planner's thread: reads, joins, feeds and plans one manifest ahead while the main thread executes."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from broker.errors import LogUnavailable
from broker.messages import Evaluation
from learner.planning.evaluate import Evaluations
from learner.planning.planner import Planned, Planner, StagePlan
from learner.serving.shifts import Turns

log = logging.getLogger("log")
STALL_SECONDS = 3.0
GATHER_SECONDS = 0.01  # records that come one by one are taken together: the trainer's thread wants the interpreter too
T = TypeVar("T")


class PlanningThread(threading.Thread):
    """Owns the planner: every access to it runs on this thread, through ``call``."""

    def __init__(
        self,
        planner: Planner,
        evaluations: Evaluations,
        on_evaluation: Callable[[Evaluation], None],
        log_away: Callable[[bool], None] = lambda away: None,
        turns: Turns | None = None,
    ) -> None:
        super().__init__(name="planner", daemon=True)
        self._planner, self._evaluations, self._on_evaluation = planner, evaluations, on_evaluation
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = queue.SimpleQueue()
        self._planned: queue.SimpleQueue[Planned] = queue.SimpleQueue()
        self._stop_flag = threading.Event()
        self._stage: StagePlan | None = None
        self._turned = time.time()
        self.failure: BaseException | None = None
        self._log_away, self._turns = log_away, turns

    def call(self, action: Callable[[Planner, Evaluations], T]) -> T:
        """Run ``action`` on the planner's thread and return what it returns (or raise what it raises)."""
        future: Future[T] = Future()
        self._calls.put((lambda: action(self._planner, self._evaluations), future))
        while True:
            try:
                return future.result(timeout=0.2)
            except TimeoutError:
                self.check()

    def begin(self, stage: StagePlan | None) -> None:
        """Plan steps of ``stage`` from now on (None: of no stage)."""
        self.call(lambda planner, evaluations: setattr(self, "_stage", stage))

    def next(self, timeout: float) -> Planned | None:
        """The next planned step, or None if there is none within ``timeout`` seconds. Raises what stopped the planner."""
        try:
            return self._planned.get(timeout=timeout)
        except queue.Empty:
            self.check()
            return None

    def is_ready(self) -> bool:
        """Whether all steps of the next turn are planned (without turns: whether one is)."""
        self.check()
        stage = self._stage
        at_end = stage is not None and self._planner.planned >= stage.last_step
        return self._planned.qsize() >= (1 if at_end else self._ahead(stage))

    def _ahead(self, stage: StagePlan | None) -> int:
        """Steps that are planned before they are taken."""
        return stage.table.turn_steps if stage is not None and self._turns and self._turns.colocated else 1

    def check(self) -> None:
        if self.failure is not None:
            raise self.failure

    def stop(self) -> None:
        self._stop_flag.set()
        self.join(10)

    def run(self) -> None:
        try:
            while not self._stop_flag.is_set():
                try:
                    self._turn()
                    self._notice_stall()
                    self._turned = time.time()
                    self._log_away(False)
                except LogUnavailable as error:
                    self._log_away(True)
                    log.warning("waiting for the log: %s", error)
                    self._stop_flag.wait(1.0)
        except BaseException as error:  # the main thread raises it: nothing is hidden here
            self.failure = error

    def _notice_stall(self) -> None:
        """If the log was away, between two rounds or in the middle of one, or engines rest, nobody can answer: deadlines begin anew."""
        now = time.time()
        if now - self._turned > STALL_SECONDS or (self._turns is not None and self._turns.under_way):
            self._planner.restart_deadlines(now)
            self._evaluations.restart_deadlines(now)

    def _turn(self) -> None:
        while not self._calls.empty():
            action, future = self._calls.get()
            try:
                future.set_result(action())
            except BaseException as error:  # it belongs to the caller
                future.set_exception(error)
        planner, now = self._planner, time.time()
        self._notice_stall()
        if planner.join.pump(timeout=0.02):
            time.sleep(GATHER_SECONDS)
            planner.join.pump(timeout=0.0)
        for result in self._evaluations.settle(now):
            self._on_evaluation(result)
        planner.bury()
        stage = self._stage
        if stage is None:
            return
        planner.expire(stage.table, now)
        planner.refill(stage)
        if planner.planned < stage.last_step and self._planned.qsize() < self._ahead(stage):
            planned = planner.plan(stage)
            if planned is not None:
                self._planned.put(planned)
