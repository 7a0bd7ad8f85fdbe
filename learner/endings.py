"""The collections that have ended in this learner's lifetime."""

from __future__ import annotations

from broker.messages import Ending, Evaluation
from broker.run import Run
from learner.planning.requests import place
from learner.telemetry import Telemetry


class Endings:
    """The collections that have ended since the checkpoint that this learner began with, by name."""

    def __init__(self, run: Run, telemetry: Telemetry, known: list[Ending]) -> None:
        self._run, self._telemetry = run, telemetry
        self.by_name: dict[str, Ending] = {ending.name: ending for ending in known}

    def take(self, ending: Ending) -> None:
        """Called on the planner's thread."""
        self.by_name[ending.name] = ending
        place(self._run.directory, ending.name).unlink(missing_ok=True)
        if isinstance(ending, Evaluation):
            self._telemetry.evaluation(ending)
