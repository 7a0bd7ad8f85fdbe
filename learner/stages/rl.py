"""``kind = "rl"``: reinforcement learning, a policy version a step; held-out questions are asked while it goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from pydantic import Field, model_validator

from broker.endings import Evaluation
from broker.runfile import Table
from learner.stages.stage import Stage, begin_with_model
from learner.tables import Benchmark, SamplingTable, Training

if TYPE_CHECKING:
    from learner.learner import Learner


class Later(Table):
    """What changes in the course of a stage: behind step ``from_step``, or for the ``last_steps`` of it.

    ``data`` replaces what is asked, ``rewards`` the mixes of the sources that it names, ``max_new_tokens`` and ``temperature`` how it is
    sampled; what is left out stays as it was. A prompt is asked in the way of the step that it is fed for; one that takes a step later than
    it was fed for keeps it.
    """

    from_step: int = Field(default=0, ge=0)
    last_steps: int = Field(default=0, ge=0)
    data: str | dict[str, float] | None = None
    rewards: dict[str, dict[str, float]] = Field(default_factory=dict)
    max_new_tokens: int = Field(default=0, ge=0)
    temperature: float = Field(default=0.0, ge=0)

    @model_validator(mode="after")
    def _placed(self) -> Self:
        if bool(self.from_step) == bool(self.last_steps):
            raise ValueError("needs either from_step or last_steps, above 0")
        return self


class Phase(NamedTuple):
    """How a stage asks from a step on: weights of the sources, mixes by source, and how it is sampled."""

    begins: int
    weights: dict[str, float]
    rewards: dict[str, dict[str, float]]
    sampling: SamplingTable


class RlStage(Stage):
    """Reinforcement learning for ``steps`` optimizer steps; every ``eval_every`` steps the held-out questions are asked.

    ``data`` names a source, or several with their weights (``{ math = 3, code = 1 }``); ``rewards`` replaces the mixes of those that it
    names (``{ math = { accuracy = 1.0, language = 0.2 } }``). ``later`` says what changes in the course of the stage. ``benchmarks`` replaces
    the one that the ``eval_*`` keys describe. With ``until_pass_at_1`` the stage ends as soon as one of these evaluations has reached it.
    """

    data: str | dict[str, float] = "prompts"
    rewards: dict[str, dict[str, float]] = Field(default_factory=dict)
    later: tuple[Later, ...] = ()
    steps: int = Field(default=100, ge=1)
    eval_every: int = Field(default=0, ge=0)
    eval_data: str = "heldout"
    eval_questions: int = Field(default=200, ge=1)
    eval_k: int = Field(default=1, ge=1)
    eval_rewarder: str = "accuracy"
    benchmarks: tuple[Benchmark, ...] = ()
    until_pass_at_1: float = Field(default=0.0, ge=0, le=1)
    learner: dict[str, Any] = Field(default_factory=dict)

    def asked(self) -> dict[str, Benchmark]:
        """The benchmarks, by the prefix of the names of their evaluations."""
        if not self.eval_every:
            return {}
        if self.benchmarks:
            return {f"{self.name}/{b.name or b.data}": b for b in self.benchmarks}
        own = Benchmark(data=self.eval_data, questions=self.eval_questions, k=self.eval_k, rewarder=self.eval_rewarder)
        return {self.name: own}

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        begins = [self._begins(later) for later in self.later]
        if begins != sorted(set(begins)) or any(not 0 < step < self.steps for step in begins):
            raise ValueError(
                f"later begins behind steps {', '.join(map(str, begins))} of {self.steps}: each must be in the stage, and behind the one before it"
            )
        asked = {name for phase in self.phases(SamplingTable()) for name in phase.weights}
        mixed = {name for rewards in (self.rewards, *(later.rewards for later in self.later)) for name in rewards}
        if strange := sorted(mixed - asked):
            raise ValueError(
                f"rewards names {strange[0]!r}, which the stage does not ask; it asks {', '.join(sorted(asked))}"
            )
        return self

    def _begins(self, later: Later) -> int:
        return later.from_step or self.steps - later.last_steps

    def phases(self, sampling: SamplingTable) -> tuple[Phase, ...]:
        """How it asks, from step 0 on and behind each change; ``sampling`` is what the stage samples by."""
        found = [Phase(0, _weights(self.data), dict(self.rewards), sampling)]
        for later in self.later:
            before = found[-1]
            changed = {key: value for key in ("max_new_tokens", "temperature") if (value := getattr(later, key))}
            found.append(
                Phase(
                    self._begins(later), before.weights if later.data is None else _weights(later.data),
                    before.rewards | later.rewards, before.sampling.model_copy(update=changed),
                )
            )  # fmt: skip
        return tuple(found)

    def weights(self) -> dict[str, float]:
        """The sources of its prompts, and how often each is asked when it is asked first."""
        found: dict[str, float] = {}
        for phase in self.phases(SamplingTable()):
            found = phase.weights | found
        return found

    def mixes(self) -> tuple[Mapping[str, float], ...]:
        return tuple(
            mix for rewards in (self.rewards, *(later.rewards for later in self.later)) for mix in rewards.values()
        )

    def sources(self) -> Mapping[str, str]:
        prompts = {"data" if isinstance(self.data, str) else f"data.{name}": name for name in _weights(self.data)}
        for number, later in enumerate(self.later):
            prompts |= {f"later.{number}.data.{name}": name for name in _weights(later.data or {})}
        key = "benchmarks.{}.data" if self.benchmarks else "eval_data"
        return prompts | {key.format(name): b.data for name, b in self.asked().items()}

    def judges(self) -> Mapping[str, str]:
        key = "benchmarks.{}.rewarder" if self.benchmarks else "eval_rewarder"
        return {key.format(name): b.rewarder for name, b in self.asked().items()}

    def training(self, resolve: Callable[[Mapping[str, Any]], Training]) -> Training:
        return resolve(self.learner)

    def total_steps(self) -> int:
        return self.steps

    def run(self, learner: Learner, index: int) -> bool:
        """Take each planned step, publish the new policy, and go on."""
        begin_with_model(learner, index, self)
        plan = learner.stage_plan(index, self.phases(learner.state.training(index).sampling), self.steps)
        learner.publish()
        self._ask_due(learner, index, redone=True)
        if not self.is_reached(learner):
            learner.begin(plan)
        while learner.progress.version < plan.last_step and not self.is_reached(learner):
            planned = learner.next()
            if planned is None:
                learner.save(plan.training.keep_checkpoints)
                return False
            learner.take(planned)
            self._ask_due(learner, index)
            if learner.progress.stage_step % plan.training.checkpoint_every == 0 and not self.is_reached(learner):
                learner.save(plan.training.keep_checkpoints)
        learner.end_plan()
        return learner.wait_collections()

    def is_reached(self, learner: Learner) -> bool:
        """Whether an evaluation of this stage, enough of it judged, was as good as the stage is to become.

        Once it is, no checkpoint is made before the stage's last: a learner that starts again finds the evaluation in the log.
        """
        mine = self.asked()
        found = [e for name, e in learner.evaluations().items() if name.rpartition(":")[0] in mine]
        return self.until_pass_at_1 > 0 and best(found) >= self.until_pass_at_1

    def _ask_due(self, learner: Learner, index: int, redone: bool = False) -> None:
        """Begin the evaluations that are due at this step; after a restart, also those that the redone steps passed by."""
        if not self.eval_every or learner.progress.stage != index:
            return
        now = learner.progress.stage_step
        first = learner.resumed_step if redone else now
        begun = learner.progress.version - now
        for step in range(self.eval_every, now + 1, self.eval_every):
            for prefix, benchmark in self.asked().items():
                name = f"{prefix}:{step}"
                if step >= first or name in learner.unfinished:
                    learner.evaluate(index, name, begun + step, benchmark)


def _weights(data: str | Mapping[str, float]) -> dict[str, float]:
    return {data: 1.0} if isinstance(data, str) else dict(data)


def best(evaluations: Iterable[Evaluation]) -> float:
    """The highest pass@1 of those that were judged enough to be believed; 0 without any."""
    return max((e.pass_at_1 for e in evaluations if not e.doubt), default=0.0)
