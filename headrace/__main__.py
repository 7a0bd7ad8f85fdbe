"""The command line. Exit status: 0 finished, 1 an audit failed, 2 bad input, 3 a fault, 130 stopped by Ctrl-C.

What a command needs is imported when it is called: ``headrace --help`` loads neither torch nor a log.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from broker.errors import HeadraceError, RunFileError
from headrace.commands import broker_arguments as logargs
from monitoring.view import PAGES

DAEMONS = {"learner": "learner.__main__", "actor": "actors.__main__", "rewarder": "rewarders.__main__"}
ELSEWHERE = {**DAEMONS, "kafka": "broker.kafka.server"}
"""Commands that read their own arguments, by the module that does."""


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="headrace", description="Asynchronous reinforcement learning for reasoning models over a durable log."
    )
    top.add_argument("--version", action="store_true", help="print the version and leave")
    commands = top.add_subparsers(dest="command", metavar="COMMAND")

    def add(name: str, text: str, **arguments: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        if "file" in arguments:
            sub.add_argument("file", type=Path, help="run file (TOML)")
            sub.add_argument("--set", dest="overrides", action="append", default=[], metavar="TABLE.KEY=VALUE")
            sub.add_argument(
                "--dir", dest="directory", type=Path, default=None, metavar="RUN", help="default: runs/NAME"
            )
        if "run" in arguments:
            sub.add_argument("run", type=Path, metavar="RUN", help="a run's directory")
        if "json" in arguments:
            sub.add_argument("--json", action="store_true")
        return sub

    run = add("run", "everything on this machine, with a live view", file="")
    run.add_argument("--plain", action="store_true", help="plain lines instead of the display")
    run.add_argument("--kafka", action="store_true", help="with a Kafka broker of its own, to try it out")
    add("plan", "check a run file and say what would run", file="")
    for role in DAEMONS:
        commands.add_parser(role, help=f"one {role} daemon by hand", add_help=False)
    commands.add_parser("kafka", help="a Kafka broker of your own, in the foreground", add_help=False)
    add("verify", "audit a run's log", run="", json="")
    add("trace", "the lineage of one optimizer step", run="", json="").add_argument("step", type=int)
    replay = add("replay", "train recorded steps again; prints the sha256 of the weights", run="")
    replay.add_argument("--steps", required=True, metavar="A-B")
    replay.add_argument("--out", required=True, type=Path)
    replay.add_argument("--set", dest="overrides", action="append", default=[], metavar="TABLE.KEY=VALUE")
    timeline = add("timeline", "who did what when in some steps, as a trace for ui.perfetto.dev", run="")
    timeline.add_argument("--steps", required=True, metavar="A-B")
    timeline.add_argument("--out", type=Path, default=None, metavar="FILE", help="default: RUN/timeline.json")
    export = add("export", "write the curves of a run for another dashboard, from its log", run="")
    export.add_argument("--to", required=True, choices=("tensorboard", "wandb"))
    export.add_argument("--out", type=Path, default=None, metavar="DIR", help="default: RUN/export/NAME")
    export.add_argument("--follow", action="store_true", help="go on with what comes, until Ctrl-C or SIGTERM")
    add("report", "write report.html and summary.json again", run="")
    top_ = add("top", "the live views of a run, from another terminal; keys switch them")
    top_.add_argument("run", type=Path, metavar="RUN", help="a run's directory, or the run file that starts it")
    top_.add_argument("--plain", action="store_true", help="plain lines instead of the display")
    top_.add_argument("--once", action="store_true", help="one look")
    top_.add_argument(
        "--view", dest="views", action="append", default=[], metavar="NAME", choices=PAGES,
        help=f"{', '.join(PAGES)}; with --once as many as you like",
    )  # fmt: skip
    watch = add("watch", "Prometheus and the alerts of one or several runs")
    watch.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN", help="its directory, or the run file that starts it"
    )
    watch.add_argument(
        "--port", type=int, default=9090, help="where Prometheus listens on the loopback; 0: any free one"
    )
    watch.add_argument(
        "--dir", dest="directory", type=Path, default=None, metavar="DIR", help="its data; default: RUN/prometheus"
    )
    watch.add_argument("--interval", type=int, default=5, metavar="SECONDS", help="between two looks at each daemon")
    logargs.arguments(add("broker", "make, look at and tidy a run's log"))
    evaluate = add("eval", "pass@1 and cons@k of a run's policy, while it goes on or afterwards", run="", json="")
    evaluate.add_argument("--data", metavar="NAME", help="a source of [data] (default heldout)")
    evaluate.add_argument("--questions", type=int, metavar="N", help="default 400")
    evaluate.add_argument("--k", type=int, metavar="K", help="samples of each question (default 1)")
    evaluate.add_argument("--rewarder", metavar="NAME", help="who says what is correct (default accuracy)")
    evaluate.add_argument("--name", metavar="NAME", help="of the evaluation in the log")
    evaluate.add_argument("--model", metavar="DIR", help="evaluate these weights, on engines of their own")
    add("keys", "make the keys of a control road that leaves this machine").add_argument(
        "file", type=Path, metavar="FILE"
    )
    doctor = add("doctor", "what a run waits for and why; without RUN: whether this machine can run headrace", json="")
    doctor.add_argument(
        "run", type=Path, nargs="?", metavar="RUN", help="a run's directory, or the run file that starts it"
    )
    return top


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and arguments[0] in ELSEWHERE:
        module = importlib.import_module(ELSEWHERE[arguments[0]])
        if arguments[0] == "learner":
            _record(arguments[1:])
        return int(module.main(arguments[1:]))
    top = parser()
    options = top.parse_args(arguments)
    if options.version:
        from importlib import metadata

        print(f"headrace {metadata.version('headrace')}")
        return 0
    if options.command is None:
        top.print_help()
        return 2
    try:
        return int(COMMANDS[options.command](options))
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
    """A ring that is started by hand has no supervisor: its learner's run file goes into the run's directory, for later commands."""
    from broker.run import Run
    from broker.run import arguments as of_daemons
    from headrace.running.rundir import RUN_FILE, record

    options = of_daemons("learner", "").parse_args(arguments)
    with contextlib.suppress(HeadraceError):  # the learner says the same, and ends with the right status
        run = Run.open(options.file, options.overrides, options.directory)
        if not (run.directory / RUN_FILE).exists():
            record(run)


def _run(options: argparse.Namespace) -> int:
    from broker.run import Run
    from broker.runfile import RunFile
    from headrace.commands.run import run_all
    from headrace.running.runfile import check

    whole = check(RunFile.read(options.file, options.overrides))  # before anything is made on disk
    if not options.kafka:
        return run_all(Run.open(options.file, options.overrides, options.directory), options.plain)
    from broker.kafka.server import KafkaServer

    home = (options.directory or Path("runs") / whole.run.name).resolve()
    with KafkaServer(home / "kafka") as server:
        url = f"broker.url={server.url}?replication=1"
        scrape = f'monitoring.targets.kafka="{server.metrics}"'
        return run_all(Run.open(options.file, [*options.overrides, url, scrape], options.directory), options.plain)


def _plan(options: argparse.Namespace) -> int:
    from broker.runfile import RunFile
    from headrace.running.runfile import check

    whole = check(RunFile.read(options.file, options.overrides))
    home = (options.directory or Path("runs") / whole.run.name).resolve()
    print(f"run {whole.run.name} in {home}: model {whole.run.model}, seed {whole.run.seed}")
    print(f"  log {whole.broker.url or f'sqlite://{home}/log'}")
    for number, stage in enumerate(whole.learner.stages):
        shown = {k: v for k, v in stage.model_dump(exclude_defaults=True).items() if k not in ("name", "kind")}
        print(f"  stage {number} {stage.name} ({stage.kind}) {shown}")
    ranks = whole.learner.learner.processes
    learner = f"1 learner of {ranks} processes" if ranks > 1 else "1 learner"
    print(f"  {learner}, {whole.actors.count} actors ({whole.actors.engine}, {whole.actors.slots} slots each)")
    if whole.learner.learner.colocated:
        print(f"  they take shifts on one set of devices: {whole.learner.learner.shift_steps} steps a shift")
    for name, table in whole.rewarders.items():
        weight = whole.run.rewards.get(name)
        mix = "not in [run] rewards" if weight is None else f"weight {weight:g}"
        started = "a program of yours" if table.external else f"{table.use}, {table.workers} workers"
        print(f"  rewarder {name}: {started}, {mix}")
    return 0


def _keys(options: argparse.Namespace) -> int:
    from broker.control.keys import Keys

    Keys.make(options.file)
    print(f"{options.file}: copy it to every machine of the run and name it in [broker] keys")
    return 0


def _eval(options: argparse.Namespace) -> int:
    from headrace.commands.evaluate import eval_command

    return eval_command(options)


def _top(options: argparse.Namespace) -> int:
    from headrace.commands.top import top_command

    return top_command(options)


def _watch(options: argparse.Namespace) -> int:
    from headrace.commands.watch import watch_command

    return watch_command(options)


def _broker(options: argparse.Namespace) -> int:
    from headrace.commands.broker import broker_command

    return broker_command(options)


def _doctor(options: argparse.Namespace) -> int:
    from headrace.doctor.command import doctor_command

    return doctor_command(options.run, options.json)


def _timeline(options: argparse.Namespace) -> int:
    from headrace.commands.timeline import timeline_command

    return timeline_command(options)


def _export(options: argparse.Namespace) -> int:
    from headrace.export.command import export_command

    return export_command(options)


def _inspect(name: str) -> Callable[[argparse.Namespace], int]:
    def command(options: argparse.Namespace) -> int:
        module = importlib.import_module("headrace.commands.inspect")
        return int(getattr(module, f"{name}_command")(options))

    return command


COMMANDS = {
    "run": _run,
    "plan": _plan,
    "keys": _keys,
    "doctor": _doctor,
    "broker": _broker,
    "top": _top,
    "eval": _eval,
    "watch": _watch,
    "timeline": _timeline,
    "export": _export,
} | {name: _inspect(name) for name in ("verify", "trace", "replay", "report")}


if __name__ == "__main__":
    sys.exit(main())
