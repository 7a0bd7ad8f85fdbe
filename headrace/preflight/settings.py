"""Finds settings that are valid one by one but do not work together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from broker.spelling import nearest
from headrace.preflight.findings import Finding, error, note, warning
from headrace.preflight.subject import Subject, Use
from learner.tables import SupervisedTable, Training

NEARLY_GREEDY = 0.05


def sampling(subject: Subject) -> Iterator[Finding]:
    """Answers that leave no room for a prompt, or that are all the same."""
    context = subject.whole.actors.context_length
    seen = set()
    for use in subject.uses:
        s = use.sampling
        if s is None or (use.where, use.purpose == "train", s) in seen:
            continue
        seen.add((use.where, use.purpose == "train", s))
        if s.max_new_tokens >= context:
            yield error(
                use.where,
                f"sampling.max_new_tokens = {s.max_new_tokens} leaves no room for a prompt in [actors] context_length = {context}",
                f"lower max_new_tokens, or raise context_length above {s.max_new_tokens} tokens and a prompt",
            )
        if s.temperature == 0 and use.purpose == "train":
            yield error(
                use.where,
                f"sampling.temperature = 0: the {use.samples} samples of a prompt are the same, and nothing can be learned from them",
                "set temperature = 1.0 for training; a benchmark may have a sampling table of its own",
            )
        elif s.temperature < NEARLY_GREEDY and use.purpose == "train":
            yield warning(
                use.where,
                f"sampling.temperature = {s.temperature:g}: the {use.samples} samples of a prompt are nearly the same, and teach next to nothing",
                "set temperature = 1.0 for training; a benchmark may have a sampling table of its own",
            )
        elif s.temperature == 0 and use.samples > 1:
            yield warning(
                use.where,
                f"sampling.temperature = 0 with {use.samples} samples a question: they are all the same",
                "set k = 1 (or samples = 1), or a temperature",
            )
        if s.temperature not in (0, 1) and use.purpose == "train":
            yield note(
                use.where,
                f"sampling.temperature = {s.temperature:g}: the policy is trained as it is at that temperature",
            )


def questions(subject: Subject) -> Iterator[Finding]:
    """More questions than rows, and single samples, with which cons@k is pass@1."""
    single = set()
    for use in subject.uses:
        if use.asked is None or (source := subject.source(use.source, False)) is None:
            continue
        if source.size is not None and use.asked > source.size:
            yield warning(
                use.where,
                f"{use.asked} questions of [data.{use.source}], which has {source.size} rows: {source.size} are asked",
                f"set questions to {source.size}, or bring more rows",
            )
        if use.purpose == "held out" and use.samples == 1 and use.source not in single:
            single.add(use.source)
            yield note(use.where, f"k = 1 on [data.{use.source}]: cons@1 is pass@1", "set k for a vote (k = 4)")


def stages(subject: Subject) -> Iterator[Finding]:
    """Stop conditions that are never reached, and evaluations or schedules that extend past the last step."""
    for stage in subject.whole.learner.stages:
        where, steps = f"[[stage]] {stage.name}", stage.total_steps()
        every = getattr(stage, "eval_every", 0)
        if getattr(stage, "until_pass_at_1", 0.0) > 0 and not every:
            yield error(
                where,
                f"until_pass_at_1 = {stage.until_pass_at_1:g} with eval_every = 0: nothing is ever asked that could reach it",  # type: ignore[attr-defined]
                "set eval_every to some steps, or take until_pass_at_1 out",
            )
        if steps and every > steps:
            yield warning(where, f"eval_every = {every} of {steps} steps: nothing is asked", f"lower it below {steps}")
        if isinstance(stage, SupervisedTable):
            if stage.until_tag and not stage.until_accuracy:
                yield warning(
                    where, f"until_tag = {stage.until_tag!r} without until_accuracy ends nothing", "set until_accuracy"
                )
            if stage.cooldown_steps >= stage.steps:
                yield warning(
                    where,
                    f"cooldown_steps = {stage.cooldown_steps} of steps = {stage.steps}: the rate may fall to the end",
                    "lower cooldown_steps",
                )
            yield from _warm_up(where, stage.optimizer.warmup_steps, steps)


def _warm_up(where: str, warmup: int, steps: int) -> Iterator[Finding]:
    if steps and warmup >= steps:
        yield warning(
            where,
            f"optimizer.warmup_steps = {warmup} of {steps} steps: the full rate is never reached",
            f"lower it below {steps}",
        )


def trainings(subject: Subject) -> Iterator[Finding]:
    """Reinforcement whose settings discard, punish or give up what it samples."""
    learner = subject.whole.learner
    every = learner.learner.publish_every
    for index, stage in enumerate(learner.stages):
        training = learner.training(index)
        if training is None:
            continue
        where = f"[[stage]] {stage.name}"
        if every > training.max_lag + 1:
            yield error(
                "[learner]",
                f"publish_every = {every} with max_lag = {training.max_lag} of stage {stage.name}: samples are up to {every - 1} versions "
                "old when the next weights come, and older than max_lag are dropped",
                f"raise max_lag to {every - 1}, or lower publish_every to {training.max_lag + 1}",
            )
        yield from _warm_up(where, training.optimizer.warmup_steps, stage.total_steps())
        yield from _objective(where, training)
        if training.overlong_buffer >= training.sampling.max_new_tokens:
            yield warning(
                where,
                f"overlong_buffer = {training.overlong_buffer} of max_new_tokens = {training.sampling.max_new_tokens}: every answer is punished for its length",
                "lower overlong_buffer",
            )
        for name, table in subject.whole.rewarders.items():
            if table.worker.timeout >= training.deadline:
                yield warning(
                    f"[rewarders.{name}]",
                    f"timeout = {table.worker.timeout:g} s, and a group is given up after deadline = {training.deadline:g} s of stage {stage.name}",
                    "raise [learner] deadline",
                )


def _objective(where: str, training: Training) -> Iterator[Finding]:
    if training.objective.use:
        return
    objective = training.objective.named()
    unbounded = training.objective.name == "r1" and not getattr(objective.term, "dual", 0)
    if unbounded and training.max_lag > 1:
        yield warning(
            where,
            f"objective 'r1' has no dual clip, and max_lag = {training.max_lag}: a token with A < 0 that the policy has left gets an "
            "unbounded gradient",
            'set max_lag to 0 or 1, or objective = { name = "r1", dual = 3 }',
        )


def rewards(subject: Subject) -> Iterator[Finding]:
    """Mixes with only zero weights or unknown names, and rewarders that are not started or judge nothing."""
    whole = subject.whole
    mixes: dict[str, Mapping[str, float]] = {"[run] rewards": whole.run.rewards}
    mixes |= {f"[data.{n}] rewards": t.rewards for n, t in whole.learner.data.items() if t.rewards is not None}
    own_mixes = {f"[[stage]] {stage.name} rewards": stage.mixes() for stage in whole.learner.stages}
    mixes |= {f"{where} ({n})": mix for where, found in own_mixes.items() for n, mix in enumerate(found)}
    known = list(whole.rewarders)
    for where, mix in mixes.items():
        for name in mix:
            if name not in whole.rewarders:
                yield error(
                    where, f"names {name!r}, but there is no [rewarders.{name}]{nearest(name, known)}", "add it"
                )
    yield from _weightless(subject)
    everyone = {name for mix in mixes.values() for name in mix} | {use.judge for use in subject.uses}
    for name, table in whole.rewarders.items():
        if name in everyone and not table.external and not table.workers:
            yield note(
                f"[rewarders.{name}]",
                f"workers = 0: none is started here, and groups wait until you start one (headrace rewarder {whole.file.path.name} --rewarder {name})",
            )
        if name not in everyone and not table.shadow:
            yield warning(
                f"[rewarders.{name}]",
                "no mix names it: it is started, and judges nothing",
                f"add it to [run] rewards ({name} = 1.0), name it as a benchmark's rewarder, or set shadow = true",
            )


def _weightless(subject: Subject) -> Iterator[Finding]:
    seen = set()
    for use in subject.uses:
        if use.training is None or use.training.objective.allows_single():
            continue
        for where, weights in use.mixes:
            if where in seen or any(weights.values()):
                continue
            seen.add(where)
            shown = ", ".join(f"{name} = {weight:g}" for name, weight in weights.items()) or "empty"
            yield error(
                where, f"every weight is 0 ({shown}): every reward is 0, and no group can be trained", "raise one"
            )


def numbers(subject: Subject) -> Iterator[Finding]:
    """Number types that are slow on the device, or that differ between the actors and the learner."""
    whole = subject.whole
    gpu = Path("/dev/nvidiactl").exists()
    device = whole.learner.learner.device
    trained = {t.dtype for i in range(len(whole.learner.stages)) if (t := whole.learner.training(i)) is not None}
    on_cpu = device == "cpu" or (device == "auto" and not gpu)
    if on_cpu and "bfloat16" in trained:
        yield warning("[learner]", "dtype = 'bfloat16' on a CPU: slower there, and less exact", "set dtype = 'float32'")
    local = whole.actors.engine == "local"
    if local and whole.actors.device == "cpu" and whole.actors.dtype == "bfloat16":
        yield warning("[actors]", "dtype = 'bfloat16' on a CPU: slower there, and less exact", "set dtype = 'float32'")
    if local and trained and whole.actors.dtype not in trained:
        yield note(
            "[actors]",
            f"dtype = {whole.actors.dtype!r}, and the learner computes in {', '.join(sorted(trained))}: log-probabilities differ by rounding",
        )


def held_out(subject: Subject) -> Iterator[Finding]:
    """Evaluations on sources that are also trained on."""
    trained = {use.source for use in subject.uses if use.purpose in ("train", "documents")}
    for use in _once(subject.uses):
        if use.purpose == "held out" and use.source in trained:
            yield warning(
                use.where,
                f"[data.{use.source}] is asked as held-out questions, and trained on",
                "bring a source of its own for the evaluation",
            )


def _once(uses: tuple[Use, ...]) -> Iterator[Use]:
    seen = set()
    for use in uses:
        if (use.where, use.source) not in seen:
            seen.add((use.where, use.source))
            yield use
