"""Finds where a consumer group without offsets begins: at what is still needed, not at the start of the run's history.

Otherwise a new rewarder, or a group whose offsets the log has dropped (Kafka keeps those of a group without members for a week), would
sample or judge again what was trained long ago.
"""

from __future__ import annotations

from collections.abc import Mapping

from broker.errors import DecodeError
from broker.log import First, Log
from broker.messages import Manifest, PlannerState, decode
from broker.topics import Topics

WINDOW = 64  # number of records at the end of the steps topic to look at first


def outstanding(log: Log, topics: Topics) -> First:
    """For each topic of the run, the offsets below which the newest manifest needs nothing; empty before the first manifest."""

    def first(topic: str) -> Mapping[int, int]:
        state = newest_state(log, topics.steps)
        kept = {topics.prompts: state.prompts, topics.trajectories: state.trajectories, topics.rewards: state.rewards}
        return kept.get(topic, {})

    return first


def newest_state(log: Log, steps: str) -> PlannerState:
    """The planner's state in the newest manifest; an empty one if there is none. Reads the topic from its end."""
    begin, end = log.begins(steps)[0], log.ends(steps)[0]
    window, upper = WINDOW, end
    while upper > begin:
        lower = max(begin, upper - window)
        state = _last_state(log, steps, lower, upper)
        if state is not None:
            return state
        upper, window = lower, 2 * window
    return PlannerState()


def _last_state(log: Log, steps: str, lower: int, upper: int) -> PlannerState | None:
    found = None
    reader = log.reader(steps, {0: lower})
    try:
        while reader.offsets()[0] < upper:
            for record in reader.poll(256, 1.0):
                try:
                    message = decode(record.value)
                except DecodeError:
                    continue
                if isinstance(message, Manifest) and record.offset < upper:
                    found = message.state
    finally:
        reader.close()
    return found
