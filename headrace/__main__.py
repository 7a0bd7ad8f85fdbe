"""The command line. Exit status: 0 finished, 1 an audit failed, 2 bad input, 3 a fault, 130 stopped by Ctrl-C.

A command's module is imported when it is called: ``headrace --help`` loads neither torch nor a log.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NamedTuple

from broker.errors import HeadraceError, RunFileError
from monitoring.garbage import end_unsearched


class Command(NamedTuple):
    """Where a command is written, and what it is for. Its module has ``arguments(sub)`` and ``main(options)``."""

    module: str
    help: str


COMMANDS = {
    "run": Command("headrace.commands.run", "everything on this machine, with a live view"),
    "plan": Command("headrace.commands.plan", "check a run file and say what would run"),
    "import": Command("headrace.commands.import_model", "make a model's directory from a GGUF file"),
    "learner": Command("learner.__main__", "one learner daemon by hand"),
    "actor": Command("actors.__main__", "one actor daemon by hand"),
    "rewarder": Command("rewarders.__main__", "one rewarder daemon by hand"),
    "kafka": Command("broker.kafka.server", "a Kafka broker of your own, in the foreground"),
    "verify": Command("headrace.commands.verify", "audit a run's log"),
    "trace": Command("headrace.commands.trace", "the lineage of one optimizer step"),
    "replay": Command("headrace.commands.replay", "train recorded steps again; prints the sha256 of the weights"),
    "fork": Command("headrace.commands.fork", "a new run that begins from a step of another one"),
    "timeline": Command(
        "headrace.commands.timeline", "who did what when in some steps, as a trace for ui.perfetto.dev"
    ),
    "export": Command("headrace.export.command", "write the curves of a run for another dashboard, from its log"),
    "report": Command("headrace.commands.report", "write report.html and summary.json again"),
    "top": Command("headrace.commands.top", "the live views of a run, from another terminal; keys switch them"),
    "watch": Command("headrace.commands.watch", "Prometheus and the alerts of one or several runs"),
    "broker": Command("headrace.commands.broker", "make, look at and tidy a run's log"),
    "eval": Command(
        "headrace.commands.evaluate", "pass@1 and cons@k of a run's policy, while it goes on or afterwards"
    ),
    "serve": Command(
        "headrace.commands.serve",
        "an OpenAI-compatible endpoint in front of a live run's actors: train agents that you have",
    ),
    "contamination": Command(
        "headrace.commands.contamination", "what of a run file's training data stands in its benchmarks, row by row"
    ),
    "compare": Command(
        "headrace.commands.compare", "two checkpoints on the same questions: difference, interval, test, what flipped"
    ),
    "review": Command(
        "headrace.commands.review", "the rows of a rewrite stage that people look at: where they lie, and back"
    ),
    "keys": Command("headrace.commands.keys", "make the keys of a control road that leaves this machine"),
    "doctor": Command(
        "headrace.doctor.command", "what a run waits for and why; without RUN: whether this machine can run headrace"
    ),
}
OWN_ARGUMENTS = ("learner", "actor", "rewarder", "kafka")
"""Commands whose module reads the arguments itself: it is started as ``python -m`` too."""


def parser(chosen: str = "") -> argparse.ArgumentParser:
    """The parser of all commands, with the arguments of the ``chosen`` one."""
    top = argparse.ArgumentParser(
        prog="headrace", description="Asynchronous reinforcement learning for reasoning models over a durable log."
    )
    top.add_argument("--version", action="store_true", help="print the version and leave")
    commands = top.add_subparsers(dest="command", metavar="COMMAND")
    for name, command in COMMANDS.items():
        sub = commands.add_parser(name, help=command.help, description=command.help)
        if name == chosen:
            importlib.import_module(command.module).arguments(sub)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    if argv is None:
        end_unsearched()
    chosen = arguments[0] if arguments and arguments[0] in COMMANDS else ""
    if chosen in OWN_ARGUMENTS:
        if chosen == "learner":
            _record(arguments[1:])
        return int(importlib.import_module(COMMANDS[chosen].module).main(arguments[1:]))
    top = parser(chosen)
    options = top.parse_args(arguments)
    if options.version:
        from importlib import metadata

        print(f"headrace {metadata.version('headrace')}")
        return 0
    if options.command is None:
        top.print_help()
        return 2
    try:
        return int(importlib.import_module(COMMANDS[chosen].module).main(options))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of `headrace ... | head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except RunFileError as error:
        print(f"headrace: {error}", file=sys.stderr)
        return 2
    except (HeadraceError, OSError) as error:
        print(f"headrace: {error}", file=sys.stderr)
        return 3


def _record(arguments: Sequence[str]) -> None:
    """A ring that is started by hand has no supervisor: its learner's run file goes into the run's directory, for later commands.

    Of a pool only rank 0 reads the run file.
    """
    from broker.run import Run
    from broker.run import arguments as of_daemons
    from headrace.running.rundir import RUN_FILE, record
    from learner.parallel.place import find_place

    options = of_daemons("learner", "").parse_args(arguments)
    with contextlib.suppress(HeadraceError):  # the learner says the same, and ends with the right status
        if (place := find_place()) is not None and place.rank:
            return
        run = Run.open(options.file, options.overrides, options.directory)
        if not (run.directory / RUN_FILE).exists():
            record(run)


if __name__ == "__main__":
    sys.exit(main())
