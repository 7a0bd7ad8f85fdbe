"""Sets aside a step that cannot be executed: its version is the policy unchanged, and training goes on."""

from __future__ import annotations

import logging
import time

from broker.errors import CheckpointError, LogError, RunFault
from broker.log import Log, Producer
from broker.messages import DeadLetter, Manifest, StepResult, encode
from broker.topics import Topics
from learner.planning.recovery import messages_from

log_ = logging.getLogger("learner")
HOPELESS_STEPS = 3  # so many manifests in a row that cannot be executed end the run


class Aside:
    """Writes with the producer of the ``steps`` topic, on whichever thread has it. ``world`` is the number of the learner's ranks."""

    def __init__(self, topics: Topics, steps: Producer, world: int) -> None:
        self._topics, self._steps, self._world = topics, steps, world
        self._newest = self._in_a_row = 0  # the last step that was set aside, and how many came right after each other

    def takes(self, manifest: Manifest, error: Exception) -> bool:
        """Whether ``error`` may be the step's own: a user's loss, a limit of the model, memory. What the disk or the log has failed
        with is not, and in a pool the other ranks have come further."""
        return (
            manifest.kind == "step" and self._world == 1 and not isinstance(error, CheckpointError | LogError | OSError)
        )

    def put(self, manifest: Manifest, offset: int, error: Exception) -> None:
        """Record that the step trains nothing. The dead letter of its manifest, at ``offset``, is what is replayed to try the step again.

        Raises RunFault if too many steps in a row could not be executed.
        """
        step, why, now = manifest.step, f"{type(error).__name__}: {error}"[:1000], time.time()
        log_.error("step %d cannot be executed and is set aside: %s", step, why, exc_info=error)
        mark = Manifest(step, manifest.stage, "set_aside", why=why, created=now)
        topic = self._topics.steps
        letter = DeadLetter(topic, 0, offset, f"step {step}".encode(), b"", why, "learner", created=now)
        self._steps.send(topic, f"set_aside/{step}".encode(), encode(mark))
        self._steps.send(self._topics.deadletters, topic.encode(), encode(letter))
        self._steps.flush()
        self._in_a_row = self._in_a_row + 1 if step == self._newest + 1 else 1
        self._newest = step
        if self._in_a_row >= HOPELESS_STEPS:
            told = f"{self._in_a_row} steps one after the other could not be executed, the last one: {why}"
            raise RunFault(told) from error


def was_executed(log: Log, topics: Topics, manifest: Manifest, offset: int) -> bool:
    """Whether the log has what the step of ``manifest`` gave, which lies behind ``offset``: others have sampled from its version."""
    results = (m for m in messages_from(log, topics, offset) if isinstance(m, StepResult))
    return any((result.step, result.stage) == (manifest.step, manifest.stage) for result in results)
