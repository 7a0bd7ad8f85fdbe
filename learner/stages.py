"""The stages of a run file: each reads as its algorithm; the ring does the rest. Every stage resumes where it stopped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from learner.config import EvaluateStage, RlStage, SftStage, Stage
from learner.ring import Learner
from learner.training.sft import SftTrainer


def run_stages(learner: Learner) -> bool:
    """Run the stages that are left, in order; False if the learner is to stop before the last one has ended."""
    done = learner.progress
    first = done.stage + 1 if done.closed else done.stage
    for index, stage in enumerate(learner.config.stages):
        if index < first:
            continue
        learner.telemetry.begin_stage(index, stage)
        if not RUNNERS[type(stage)](learner, index, stage):
            return False
        learner.close_stage(index)
    return True


def run_rl(learner: Learner, index: int, stage: RlStage) -> bool:
    """Reinforcement learning: take each planned step, publish the new policy, and go on."""
    begin_with_model(learner, index, stage)
    plan = learner.stage_plan(index, stage)
    learner.publish()
    ask_due(learner, index, stage, redone=True)
    if not is_reached(learner, stage):
        learner.begin(plan)
    while learner.progress.version < plan.last_step and not is_reached(learner, stage):
        planned = learner.next()
        if planned is None:
            learner.save(plan.table)
            return False
        learner.take(planned)
        ask_due(learner, index, stage)
        if learner.progress.stage_step % plan.table.checkpoint_every == 0 and not is_reached(learner, stage):
            learner.save(plan.table)
    learner.end_plan()
    return learner.wait_evaluations()


def is_reached(learner: Learner, stage: RlStage) -> bool:
    """Whether an evaluation of this stage was as good as the stage is to become.

    Once it is, no checkpoint is made before the stage's last: a learner that starts again finds the evaluation in the log.
    """
    found = [value for name, value in list(learner.evaluated.items()) if name.rpartition(":")[0] == stage.name]
    return stage.until_pass_at_1 > 0 and max(found, default=0.0) >= stage.until_pass_at_1


def ask_due(learner: Learner, index: int, stage: RlStage, redone: bool = False) -> None:
    """Begin the evaluation that is due at this step; after a restart, also those that the redone steps passed by."""
    if not stage.eval_every or learner.progress.stage != index:
        return
    now = learner.progress.stage_step
    first = learner.resumed_step if redone else now
    begun = learner.progress.version - now
    asked = EvaluateStage(
        kind="evaluate",
        data=stage.eval_data,
        questions=stage.eval_questions,
        k=stage.eval_k,
        rewarder=stage.eval_rewarder,
    )
    for step in range(stage.eval_every, now + 1, stage.eval_every):
        name = f"{stage.name}:{step}"
        if step >= first or name in learner.unfinished:
            learner.ask(index, name, begun + step, asked, learner.config.rl(stage))


def run_evaluate(learner: Learner, index: int, stage: EvaluateStage) -> bool:
    """pass@1 and cons@k of the policy as it is."""
    begin_with_model(learner, index, stage)
    learner.publish()
    learner.ask(index, stage.name, learner.progress.version, stage, learner.config.learner)
    return learner.wait_evaluations()


def run_sft(learner: Learner, index: int, stage: SftStage) -> bool:
    """Supervised training; its result is a checkpoint that is kept, and becomes the next policy version."""
    with learner.turns.turn():
        return _run_sft(learner, index, stage)


def _run_sft(learner: Learner, index: int, stage: SftStage) -> bool:
    resumed = learner.progress.stage == index and not learner.progress.closed
    if not resumed or not learner.extra:
        begin_with_model(learner, index, stage)
    trainer = SftTrainer(
        learner.executor.model,
        learner.executor.tokenizer(),
        learner.documents(stage.data),
        stage,
        learner.run.table.seed,
        learner.executor.plan,
    )
    if resumed and learner.extra:
        trainer.load_state_dict(learner.extra)
    for report in trainer.steps():
        learner.progress_in_stage(index, report)
        if learner.stop or report.stage_step % stage.checkpoint_every == 0:
            learner.save(learner.config.learner, extra=trainer.state_dict())
        if learner.stop:
            return False
    path = learner.save(learner.config.learner, name=f"stage-{index}-{stage.name}", extra=trainer.state_dict())
    learner.replace_weights(index, str(path.relative_to(learner.run.directory)))
    return True


def begin_with_model(learner: Learner, index: int, stage: Stage) -> None:
    """At the start of a stage that names a model of its own: its weights are the next policy version."""
    progress = learner.progress
    if stage.model and not (progress.stage == index and not progress.closed):
        learner.replace_weights(index, stage.model)


RUNNERS: dict[type, Callable[[Learner, int, Any], bool]] = {
    RlStage: run_rl,
    EvaluateStage: run_evaluate,
    SftStage: run_sft,
}
