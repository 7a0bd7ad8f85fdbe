"""``headrace export``: the curves of a run, made from its log; with ``--follow`` they then grow with it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from broker.errors import LogUnavailable
from broker.log import Log, Record
from broker.run import Run
from headrace.commands.arguments import key_values, run_directory
from headrace.export.curves import point, points
from headrace.export.output import Output, remove, sole_export
from headrace.export.sink import EXPORTERS, Exporter, Sink, exporter_of
from headrace.reading.history import History
from headrace.reading.records import first
from headrace.reading.redaction import tables_without_secrets, without_secrets
from headrace.running.rundir import reopen
from monitoring.daemon import Stop

POLL_SECONDS = 0.5
RETRY_SECONDS = 2.0
BATCH = 512


def arguments(sub: argparse.ArgumentParser) -> None:
    run_directory(sub)
    sub.add_argument(
        "--to", required=True, metavar="EXPORTER", help=f"{', '.join(EXPORTERS)}, or file.py:Class beside the run file"
    )
    sub.add_argument(
        "--with", dest="options", action="append", default=[], metavar="NAME=VALUE", help="an option of the exporter"
    )
    sub.add_argument("--out", type=Path, default=None, metavar="DIR", help="default: RUN/export/NAME")
    sub.add_argument("--follow", action="store_true", help="go on with what comes, until Ctrl-C or SIGTERM")


def main(options: argparse.Namespace) -> int:
    run = reopen(options.run)
    exporter = exporter_of(options.to, key_values(options.options, "--with"), run.file.base)
    name = options.to.partition(":")[0].removesuffix(".py")
    out = (options.out or run.directory / "export" / name).resolve()
    with sole_export(out), closing(run.open_log()) as log:
        if options.follow:
            Follower(run, log, exporter, out).run()
        else:
            print(f"{out}: {write(run, log, exporter, out)} points")
    return 0


def opener(run: Run, exporter: Exporter) -> Callable[[Path], Sink]:
    """Opens the sink of a directory, with the run file in it."""

    def opened(directory: Path) -> Sink:
        sink = exporter.open(directory, run.table.name, tables_without_secrets(run.file.tables))
        sink.text("config", without_secrets(run.file.path.read_text(encoding="utf-8")))
        return sink

    return opened


def write(run: Run, log: Log, exporter: Exporter, out: Path) -> int:
    """Write all points into a new directory that replaces ``out`` once it is complete; returns the number of points."""
    fresh = out.with_name(f".{out.name}.new")
    try:
        with closing(Output(fresh, opener(run, exporter))) as output:
            _renew(run, log, output)
            output.close(whole=appends(exporter))
        remove(out)
        fresh.rename(out)
    finally:
        remove(fresh)
    return output.count


def appends(exporter: Exporter) -> bool:
    """Whether a new sink of this exporter can continue where an earlier one was closed."""
    return bool(getattr(exporter, "appends", False))


def _renew(run: Run, log: Log, output: Output) -> None:
    """Write all that the log holds."""
    history = History.of(log, run.topics)
    output.renew(points(history))
    output.place.offset = history.next
    output.place.reinforced = sorted(history.reinforced)
    output.place.began = began(run, log)


def began(run: Run, log: Log) -> float:
    """When the log took the first record of the steps; 0 without any. It tells one run from another in the same place."""
    record = first(log, run.topics.steps)
    return record.timestamp if record is not None else 0.0


class Follower:
    """Writes the points in the log (only the new ones if an earlier export can be continued), then each further one as
    it comes.

    It keeps only the newest step of each curve in memory.
    """

    def __init__(self, run: Run, log: Log, exporter: Exporter, out: Path) -> None:
        self._run, self._log, self._appends = run, log, appends(exporter)
        self._output = Output(out, opener(run, exporter))
        self._history = History(keep=1)

    def run(self) -> None:
        """Until SIGTERM or Ctrl-C; what lies in the log by then is written too. A log that is away is waited for."""
        stop = Stop().install()
        output = self._output
        with closing(output):
            if not (self._appends and self._same_run() and output.resume()):
                _renew(self._run, self._log, output)
            print(
                f"{output.directory}: {output.count} points, and what comes; SIGTERM or Ctrl-C ends it",
                flush=True,
            )
            with closing(self._log.reader(self._run.topics.steps, {0: output.place.offset})) as reader:
                ended = False
                while not ended:
                    stopped = bool(stop)
                    try:
                        found = reader.poll(BATCH, POLL_SECONDS)
                    except LogUnavailable as error:
                        print(f"headrace: waiting for the log: {error}", file=sys.stderr)
                        ended = stop.wait(RETRY_SECONDS)
                        continue
                    if self._take(found):
                        reader.seek({0: output.place.offset})
                    ended = stopped and not found
            output.close(whole=self._appends)

    def _same_run(self) -> bool:
        """Whether the existing output belongs to this log."""
        place = self._output.place_there()
        ends = self._log.ends(self._run.topics.steps)
        return place is not None and place.offset <= ends[0] and place.began == began(self._run, self._log)

    def _take(self, found: list[Record]) -> bool:
        """Write the points of these records; True if all had to be written anew, and further ones with them."""
        output = self._output
        for record in found:
            message = self._history.take(record)
            reinforced = {*output.place.reinforced, *self._history.reinforced}
            told = point(message, record.timestamp, reinforced)
            if told is not None and output.is_late(told):
                _renew(self._run, self._log, output)
                return True
            output.add([told] if told is not None else [])
            output.place.offset, output.place.reinforced = record.offset + 1, sorted(reinforced)
        return False
