"""``headrace export``: the curves of a run, made anew from its log; with ``--follow`` they then grow with it."""

from __future__ import annotations

import argparse
import fcntl
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from broker.errors import LogUnavailable, RunFault, RunFileError
from broker.log import Reader
from headrace.export.curves import Curves, Point
from headrace.export.sink import Sink, sink_of
from headrace.reading.records import read, scan
from headrace.running.redaction import tables_without_secrets, without_secrets
from headrace.running.rundir import reopen
from monitoring.daemon import Stop

MARK = ".headrace-export"
"""A file that says that the directory is an export's own, to be removed and made anew."""
POLL_SECONDS = 0.5
RETRY_SECONDS = 2.0


def export_command(options: argparse.Namespace) -> int:
    run, open_sink = reopen(options.run), sink_of(options.to)
    out = (options.out or run.directory / "export" / options.to).resolve()
    tables, config = tables_without_secrets(run.file.tables), without_secrets(run.file.path.read_text(encoding="utf-8"))

    def opened(directory: Path) -> Sink:
        sink = open_sink(directory, run.table.name, tables)
        sink.text("config", config)
        return sink

    with sole_export(out), closing(run.open_log()) as log:
        curves, points, end = Curves(), [], 0
        for record, message in scan(log, run.topics.steps):
            points.append(curves.take(message, record.timestamp))
            end = record.offset + 1
        if options.follow:
            with closing(log.reader(run.topics.steps, {0: end})) as reader:
                _follow(reader, curves, points, Output(out, opened))
        else:
            print(f"{out}: {_write(points, out, opened)} points")
    return 0


class Output:
    """A directory of curves that grows. What comes late, or again after a redo, has it made anew: no sink takes points back."""

    def __init__(self, directory: Path, opened: Callable[[Path], Sink]) -> None:
        self.directory, self._opened = directory, opened
        self._points: dict[tuple[str, int], Point] = {}
        self._newest: dict[str, int] = {}
        self._sink: Sink | None = None

    def add(self, points: Iterable[Point | None]) -> None:
        fresh = {(p.series, p.step): p for p in points if p is not None}
        late = any(step <= self._newest.get(series, -1) for series, step in fresh)
        self._points |= fresh
        if late or self._sink is None:
            self.close()
            remove(self.directory)
            self.directory.mkdir(parents=True)
            (self.directory / MARK).touch()
            self._sink, fresh = self._opened(self.directory), self._points
        for (series, step), point in sorted(fresh.items(), key=lambda item: item[0]):
            self._sink.scalars(step, point.values, point.time)
            self._newest[series] = max(step, self._newest.get(series, step))

    def __len__(self) -> int:
        return len(self._points)

    def close(self) -> None:
        if self._sink is not None:
            self._sink.close()
            self._sink = None


def _write(points: Iterable[Point | None], out: Path, opened: Callable[[Path], Sink]) -> int:
    """All points into a directory that takes the place of ``out`` once it is whole; returns how many they are."""
    fresh = out.with_name(f".{out.name}.new")
    try:
        with closing(Output(fresh, opened)) as output:
            output.add(points)
        remove(out)
        fresh.rename(out)
    finally:
        remove(fresh)
    return len(output)


def _follow(reader: Reader, curves: Curves, points: Iterable[Point | None], output: Output) -> None:
    """Write what is there, then what comes, until SIGTERM or Ctrl-C; what lies in the log by then is written too.

    A log that is away is waited for.
    """
    stop = Stop().install()
    with closing(output):
        output.add(points)
        print(f"{output.directory}: {len(output)} points, and what comes; SIGTERM or Ctrl-C ends it", flush=True)
        ended = False
        while not ended:
            stopped = bool(stop)
            try:
                records = reader.poll(512, POLL_SECONDS)
            except LogUnavailable as error:
                print(f"headrace: waiting for the log: {error}", file=sys.stderr)
                ended = stop.wait(RETRY_SECONDS)
            else:
                output.add(curves.take(read(record), record.timestamp) for record in records)
                ended = stopped and not records


def remove(directory: Path) -> None:
    """Remove a directory. What a kill leaves of it is under another name, and is removed by the next export."""
    old = directory.with_name(f".{directory.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    with suppress(FileNotFoundError):
        directory.rename(old)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def sole_export(out: Path) -> Iterator[None]:
    """Hold the output directory while the block runs.

    Raises RunFault if another export holds it, RunFileError if there lies what no export has made: it would be lost.
    """
    if out.exists() and not (out / MARK).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise RunFileError(f"--out {out} holds what is no export's; name a new directory or an empty one")
    out.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(out.with_name(f".{out.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunFault(f"{out} is being written by another export; end it, or name another --out") from None
        yield
    finally:
        os.close(handle)
