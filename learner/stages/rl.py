"""``kind = "rl"``: reinforcement learning. Each step makes a policy version, and evaluations run during training."""

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
    """A change of settings within a stage: after step ``from_step``, or for its ``last_steps`` steps.

    ``data`` replaces the sources, ``rewards`` the mixes of the sources that it names, and ``max_new_tokens`` and
    ``temperature`` the sampling; settings that are not given stay as they were. A prompt gets the settings of the step
    that it is fed for, and keeps them if a later step trains it.
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
    """The settings after step ``begins``: weights of the sources, reward mixes by source, and sampling."""

    begins: int
    weights: dict[str, float]
    rewards: dict[str, dict[str, float]]
    sampling: SamplingTable


class RlStage(Stage):
    """Reinforcement learning for ``steps`` optimizer steps, with an evaluation every ``eval_every`` steps (0: none).

    ``data`` names a source, or several with weights (``{ math = 3, code = 1 }``). ``rewards`` replaces the mixes of the
    sources that it names (``{ math = { accuracy = 1.0, language = 0.2 } }``). ``later`` lists changes within the stage.
    ``benchmarks`` replaces the benchmark that the ``eval_*`` keys describe. With ``until_pass_at_1`` above 0, the stage
    ends as soon as one of its evaluations reaches that value. ``learner`` overrides keys of ``[learner]``.
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
        """The benchmarks, by the prefix of their evaluations' names."""
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
                f"later begins behind steps {', '.join(map(str, begins))} of {self.steps}: each must be a step of the stage, after the one before it"
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
        """The settings from step 0 on, and after each change; ``sampling`` is the stage's own sampling table."""
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
        """All sources of prompts, each with its weight in the first phase that has it."""
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
        """Execute planned steps, and begin the evaluations that are due, until the last step or ``until_pass_at_1``."""
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
        learner.publish()  # with publish_every it may be a version that no step has published, and an evaluation asks for it
        return learner.wait_collections()

    def is_reached(self, learner: Learner) -> bool:
        """Whether a reliable evaluation of this stage reached ``until_pass_at_1``.

        After that, no checkpoint is made before the stage's last: a restarted learner finds the evaluation in the log.
        """
        mine = self.asked()
        found = [e for name, e in learner.evaluations().items() if name.rpartition(":")[0] in mine]
        return self.until_pass_at_1 > 0 and best(found) >= self.until_pass_at_1

    def _ask_due(self, learner: Learner, index: int, redone: bool = False) -> None:
        """Begin the evaluations due at this step; after a restart (``redone``), also those due at redone steps."""
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
    """The highest pass@1 of the reliable evaluations (those without ``doubt``); 0 if there is none."""
    return max((e.pass_at_1 for e in evaluations if not e.doubt), default=0.0)
