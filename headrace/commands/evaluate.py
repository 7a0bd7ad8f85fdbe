"""``headrace eval RUN``: pass@1 and cons@k of a run's policy, on the run's own engines and rewarders.

While the run goes on, its learner evaluates without stopping its training. Otherwise the newest checkpoint
(or ``--model``) is evaluated in a small separate run in RUN/evaluations.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from contextlib import closing, nullcontext, redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Any

from broker.errors import RunFault, RunFileError
from broker.messages import Evaluation
from broker.run import Run
from broker.runfile import RunFile, parse
from broker.spelling import nearest
from headrace.commands.arguments import as_json, run_directory
from headrace.reading.heads import head_of
from headrace.reading.records import read, records
from headrace.running.rundir import RUN_FILE, reopen
from headrace.running.runfile import check
from learner.config import LearnerConfig
from learner.planning.requests import Asked, leave
from monitoring.daemon import registrations
from rewarders.config import rewarder_tables

LOOK_SECONDS = 0.5


def arguments(sub: argparse.ArgumentParser) -> None:
    run_directory(sub)
    as_json(sub)
    sub.add_argument("--data", metavar="NAME", help="a source of [data] (default heldout)")
    sub.add_argument("--questions", type=int, metavar="N", help="default 400")
    sub.add_argument("--k", type=int, metavar="K", help="samples of each question (default 1)")
    sub.add_argument("--rewarder", metavar="NAME", help="who says what is correct (default accuracy)")
    sub.add_argument("--temperature", type=float, metavar="T", help="default: that of the stage under way")
    sub.add_argument("--top-p", type=float, metavar="P", help="the same")
    sub.add_argument("--name", metavar="NAME", help="of the evaluation in the log")
    sub.add_argument("--model", metavar="DIR", help="evaluate these weights, on engines of their own")


def main(options: argparse.Namespace) -> int:
    """Print the result. Raises RunFileError for an unknown name, RunFault if the run ends first."""
    run = reopen(options.run)
    name = options.name or time.strftime("asked-%Y%m%d-%H%M%S")
    sampling = {"temperature": options.temperature, "top_p": options.top_p}
    sampling = {key: value for key, value in sampling.items() if value is not None}
    wanted = {
        "name": name,
        "data": options.data,
        "questions": options.questions,
        "k": options.k,
        "rewarder": options.rewarder,
        "sampling": sampling or None,
    }
    asked = parse({key: value for key, value in wanted.items() if value is not None}, Asked, "headrace eval")
    _known(run, asked)
    with redirect_stdout(sys.stderr) if options.json else nullcontext():  # what is told meanwhile is no JSON
        if options.model is None and _lives(run, "learner"):
            result = _ask(run, asked)
        else:
            result = _alone(run, asked, options.model)
    if options.json:
        print(
            json.dumps(
                {key: value for key, value in asdict(result).items() if key not in ("group_ids", "marks", "examples")},
                indent=2,
            )
        )
    else:
        print(told(result))
    return 0


def told(result: Evaluation) -> str:
    (low, high), (cons_low, cons_high) = result.pass_at_1_interval, result.cons_at_k_interval
    first, last = result.versions
    sampled = f"version {first}" if first == last else f"versions {first} to {last}"
    if not result.questions:
        return f"{result.name}, {sampled}: {result.doubt}, of {result.metrics.get('questions_asked', 0):.0f} questions"
    lost = f"; {len(result.dropped)} could not be judged" if result.dropped else ""
    lost += f"; {result.doubt}" if result.doubt else ""
    return (
        f"{result.name}, {sampled}: pass@1 {result.pass_at_1:.3f} [{low:.3f}, {high:.3f}], "
        f"cons@{result.k} {result.cons_at_k:.3f} [{cons_low:.3f}, {cons_high:.3f}], "
        f"pass@{result.k} {result.metrics.get('pass_at_k', 0.0):.3f} "
        f"over {result.questions} questions, {result.response_tokens:.0f} tokens each{lost}"
    )


def _known(run: Run, asked: Asked) -> None:
    data = LearnerConfig(run.file).data
    if asked.data not in data:
        raise RunFileError(f"--data {asked.data!r} is not in [data]{nearest(asked.data, list(data))}")
    known = rewarder_tables(run.file)
    if asked.rewarder not in known:
        raise RunFileError(f"--rewarder {asked.rewarder!r} is not in [rewarders]{nearest(asked.rewarder, list(known))}")


def _lives(run: Run, *roles: str) -> bool:
    return any(d.role in roles for d in registrations(run.directory))


class Answer:
    """Finds the evaluation of a name: the first ``look`` searches the whole log, each later one only new records."""

    def __init__(self, run: Run, name: str) -> None:
        self._run, self._name, self._next = run, name, 0

    def look(self) -> Evaluation | None:
        found = None
        with closing(self._run.open_log()) as log:
            for record in records(log, self._run.topics.steps, {0: self._next}):
                self._next = record.offset + 1
                head = head_of(record)
                if (head.type, head.name) == (Evaluation.TYPE, self._name):
                    found = read(record)
        return found if isinstance(found, Evaluation) else None


def _not_there(found: Evaluation | None, asked: Asked) -> None:
    if found is not None:
        raise RunFileError(f"--name {asked.name!r} is the name of an evaluation in the log already; use another")


def _ask(run: Run, asked: Asked) -> Evaluation:
    """Ask the learner to evaluate between its steps, and wait for the result."""
    answer = Answer(run, asked.name)
    _not_there(answer.look(), asked)
    path = leave(run.directory, asked)
    print(f"asked the learner: {asked.questions} questions, {asked.k} samples each ({path.name})", flush=True)
    try:
        while True:
            time.sleep(LOOK_SECONDS)
            if not path.exists():
                result = answer.look()
                if result is None:
                    raise RunFault(f"the learner has refused the evaluation; see {run.directory / 'logs'}")
                return result
            if not _lives(run, "learner", "supervisor"):
                raise RunFault("the run has ended before the evaluation did; ask again to evaluate its last checkpoint")
    finally:
        path.unlink(missing_ok=True)


def _alone(run: Run, asked: Asked, model: str | None) -> Evaluation:
    """Evaluate in a run of one stage, with the same actors and rewarders and a separate log."""
    from headrace.commands.run import run_all

    if model is None:
        from learner.training.checkpoint import Checkpoints

        newest = Checkpoints(run.directory / "checkpoints").newest()
        if newest is None:
            raise RunFileError(f"{run.directory} has no checkpoint yet; name one with --model")
        model = str(newest[0])
    alone = separate(run, asked, model)
    check(alone.file)
    if (alone.directory / RUN_FILE).is_file():
        _not_there(Answer(alone, asked.name).look(), asked)
    alone.directory.mkdir(parents=True, exist_ok=True)
    run_all(alone, plain=True)
    result = Answer(alone, asked.name).look()
    if result is None:
        raise RunFault(f"no result came; see {alone.directory / 'logs'}")
    return result


def separate(run: Run, asked: Asked, model: str) -> Run:
    """The run that evaluates ``model`` beside ``run``."""
    tables: dict[str, Any] = {key: value for key, value in run.file.tables.items() if key != "stage"}
    path = str(Path(model).resolve()) if Path(model).is_dir() else model
    tables["run"] = {**tables["run"], "name": f"{run.table.name}-{asked.name}"[:80], "model": path}
    tables["broker"] = {**tables.get("broker", {}), "url": ""}
    tables["stage"] = [{"kind": "evaluate", **asked.model_dump(exclude_unset=True)}]
    directory = run.directory / "evaluations" / asked.name
    return Run.of(RunFile(tables, run.file.base, run.file.path), directory)
