"""``kind = "evaluate"``: measures pass@1 and cons@k of the current policy on one or several benchmarks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pydantic import Field

from learner.stages.stage import Stage, begin_with_model
from learner.tables import Benchmark, SamplingTable

if TYPE_CHECKING:
    from learner.learner import Learner


class EvaluateStage(Stage):
    """Evaluates on ``benchmarks``, or without them on the one that the other keys describe."""

    data: str = "heldout"
    questions: int = Field(default=400, ge=1)
    k: int = Field(default=1, ge=1)
    rewarder: str = "accuracy"
    sampling: SamplingTable | None = None
    benchmarks: tuple[Benchmark, ...] = ()

    def asked(self) -> dict[str, Benchmark]:
        """The benchmarks, by the names of their evaluations in the log."""
        if not self.benchmarks:
            own = Benchmark(
                data=self.data, questions=self.questions, k=self.k, rewarder=self.rewarder, sampling=self.sampling
            )
            return {self.name: own}
        return {f"{self.name}/{b.name or b.data}": b for b in self.benchmarks}

    def sources(self) -> Mapping[str, str]:
        return {f"benchmarks.{name}.data" if self.benchmarks else "data": b.data for name, b in self.asked().items()}

    def judges(self) -> Mapping[str, str]:
        return {
            f"benchmarks.{name}.rewarder" if self.benchmarks else "rewarder": b.rewarder
            for name, b in self.asked().items()
        }

    def run(self, learner: Learner, index: int) -> bool:
        begin_with_model(learner, index, self)
        learner.publish()
        for name, benchmark in self.asked().items():
            learner.evaluate(index, name, learner.progress.version, benchmark)
        return learner.wait_collections()
