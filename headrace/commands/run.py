"""``headrace run``: run the whole ring on this machine, with a live view, from the first step to the report."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from broker.errors import HeadraceError, RunFault
from broker.messages import Manifest, Seal, StepResult
from broker.patience import wait_for_log
from broker.run import Run
from broker.runfile import RunFile
from headrace.commands.arguments import run_file
from headrace.preflight.ahead import RUN_SECONDS, lines, look_ahead
from headrace.reading.records import newest
from headrace.running.nursery import Nursery, nursery
from headrace.running.run_edits import Edits, commands
from headrace.running.rundir import record
from headrace.running.runfile import WholeRun, check
from headrace.running.supervisor import Supervisor, sole_supervisor
from monitoring.daemon import Stop
from monitoring.live import LiveView, open_view
from monitoring.view import clean_text

if TYPE_CHECKING:
    from headrace.reading.summary import WallClock

FINISHED, BAD_INPUT, FAULT, INTERRUPTED = 0, 2, 3, 130
FINISHED_MARK = "finished"  # this file exists once the learner has ended by itself, after its last checkpoint
LAST = 32  # how many of the last records of the steps topic are searched for the learner's: audits add seals after them
CLOCK_SECONDS = 5.0  # how much recorded wall time is lost at most if the supervisor is killed


def arguments(sub: argparse.ArgumentParser) -> None:
    run_file(sub)
    sub.add_argument("--plain", action="store_true", help="plain lines instead of the display")
    sub.add_argument("--kafka", action="store_true", help="with a Kafka broker of its own, to try it out")


def main(options: argparse.Namespace) -> int:
    whole = check(RunFile.read(options.file, options.overrides))  # before anything is written to disk
    with nursery() as forks:  # its imports run while the checks do
        if not looked_at(whole.file):
            return BAD_INPUT
        if not options.kafka:
            return run_all(Run.open(options.file, options.overrides, options.directory), options.plain, forks)
        from broker.kafka.server import KafkaServer

        home = (options.directory or Path("runs") / whole.run.name).resolve()
        with KafkaServer(home / "kafka") as server:
            url = f"broker.url={server.url}?replication=1"
            scrape = f'monitoring.targets.kafka="{server.metrics}"'
            run = Run.open(options.file, [*options.overrides, url, scrape], options.directory)
            return run_all(run, options.plain, forks)


def looked_at(file: RunFile) -> bool:
    """Check the run, and print its warnings and errors; False if there are errors."""
    looked = look_ahead(file, RUN_SECONDS)
    for line in lines(looked.of("warning")):
        print(line, flush=True)
    if looked.broken:
        print(f"headrace: not everything was checked before the start: {looked.broken}", flush=True)
    for finding in looked.errors:
        print(f"headrace: {clean_text(str(finding), 600)}", file=sys.stderr, flush=True)
    return not looked.errors


def run_all(run: Run, plain: bool, forks: Nursery | None = None) -> int:
    """Run to the end. Returns the exit status; raises RunFileError for bad input, RunFault for a fault."""
    from headrace.reading.summary import WallClock

    whole = check(run.file)
    with sole_supervisor(run.directory):
        changed = record(run)
        clock = WallClock(run.directory)
        if is_finished(run, whole):
            print(
                f"headrace: run {run.table.name!r} in {run.directory} is finished; remove it to run it anew", flush=True
            )
        else:
            view = open_view(plain)
            try:
                for line in [*opening(run, whole), *(f"  changed  {change}" for change in changed)]:
                    view.note(line)
                with told(run.directory / "logs" / "supervisor.out"):
                    status = supervise(run, whole, view, clock.start(), forks)
            finally:
                view.close()
                clock.keep()
            if status is None:
                print(f"stopped; the same command resumes ({run.directory})", flush=True)
                return INTERRUPTED
            (run.directory / FINISHED_MARK).touch()
        wait_for_log(lambda: finish(run, clock.seconds), Stop().install())
    return FINISHED


@contextlib.contextmanager
def told(path: Path) -> Iterator[None]:
    """Write the fault that ends the block to ``path`` for later inspection; an old one is removed first."""
    path.unlink(missing_ok=True)
    try:
        yield
    except HeadraceError as error:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"fault: {error}\n", encoding="utf-8")
        raise


def is_finished(run: Run, whole: WholeRun) -> bool:
    """Whether the learner has ended by itself, and the log says that it closed the last stage.

    False if the run file has since got a further stage, or more steps for the last one.
    """
    if not (run.directory / FINISHED_MARK).exists():
        return False
    stages = whole.learner.stages
    with closing(run.open_log()) as log:
        found = [m for _, m in reversed(newest(log, run.topics.steps, LAST)) if not isinstance(m, Seal)]
    last = found[0] if found else None
    if not (isinstance(last, Manifest) and last.kind == "close" and last.stage >= len(stages) - 1):
        return False
    results = (m for m in found if isinstance(m, StepResult) and m.stage == last.stage)
    taken = next((result.stage_step for result in results), None)
    reinforced = last.stage < len(stages) and whole.learner.training(last.stage) is not None
    return not reinforced or taken is None or taken >= stages[last.stage].total_steps()


def opening(run: Run, whole: WholeRun) -> list[str]:
    """Lines to print at the start: stages, daemons, log."""
    resumed = (run.directory / "checkpoints").is_dir() and any((run.directory / "checkpoints").iterdir())
    daemons = ", ".join(c.name for c in commands(whole, run))
    stages = " -> ".join(f"{stage.name} ({stage.kind})" for stage in whole.learner.stages)
    return [
        f"headrace: {'resuming' if resumed else 'starting'} run {run.table.name!r} in {run.directory}",
        f"  stages   {stages}",
        f"  daemons  {daemons}; what they say is in {run.directory / 'logs'}",
        f"  log      {run.url}",
        "  Ctrl-C stops it cleanly; the same command resumes. The first seconds go into loading torch.",
    ]


def supervise(run: Run, whole: WholeRun, view: LiveView, clock: WallClock, forks: Nursery | None = None) -> int | None:
    from headrace.running.progress import Progress
    from headrace.running.watcher import Watcher

    supervisor = Supervisor(commands(whole, run), run.directory / "logs", "learner-0", view.note, forks)
    edits = Edits(run, whole, supervisor, view.note)
    with closing(Progress(run, whole.learner, supervisor.views)) as progress, closing(Watcher(run)) as watcher:

        def tick() -> None:
            edits.follow()
            view.update(progress.refresh())
            watcher.look(supervisor.views(), progress.view.stage_number)
            clock.keep(every=CLOCK_SECONDS)

        status = supervisor.run(Stop().install(), tick)
        view.update(progress.refresh())
        return status


def finish(run: Run, wall_seconds: float) -> None:
    """Write summary, report and plots from the log. Raises RunFault if the audit of the log finds problems."""
    from rich.console import Console

    from headrace.commands.report import write_report
    from monitoring.report import summary_table

    summary, audit = write_report(run, wall_seconds)
    Console().print(summary_table(summary))
    print(f"report: {run.directory / 'report.html'}", flush=True)
    if audit.problem_count:
        raise RunFault(f"the audit of the log found {audit.problem_count} problems, first: {audit.problems[0]}")
