"""A run as every daemon sees it: the run file's shared tables, its directory, its topics and its log."""

from __future__ import annotations

import argparse
import contextlib
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry

from broker.errors import LogError
from broker.log import Log
from broker.metered import MeteredLog
from broker.open import engine_of, open_log
from broker.outstanding import outstanding
from broker.patience import wait_for_log
from broker.runfile import BrokerTable, MonitoringTable, RunFile, RunTable
from broker.topics import Topics
from monitoring.daemon import Stop, registered
from monitoring.exporter import Exporter
from monitoring.metrics import BrokerMetrics

if TYPE_CHECKING:
    from broker.control.keys import Keys


@dataclass(frozen=True, slots=True)
class Run:
    """``directory`` holds log/, checkpoints/, weights/, logs/, daemons/; ``file`` is the run file with its overrides."""

    file: RunFile
    table: RunTable
    broker: BrokerTable
    monitoring: MonitoringTable
    directory: Path
    topics: Topics

    @classmethod
    def open(cls, path: Path, overrides: list[str] | None = None, directory: Path | None = None) -> Run:
        """Read ``path``; ``directory`` is by default ``runs/NAME`` below the working directory. Raises RunFileError."""
        return cls.of(RunFile.read(path, overrides or ()), directory)

    @classmethod
    def of(cls, file: RunFile, directory: Path | None = None) -> Run:
        """The run that ``file`` describes. Raises RunFileError."""
        table, broker = file.table("run", RunTable), file.table("broker", BrokerTable)
        if broker.url:
            engine_of(broker.url, broker.engines)
        home = (directory or Path("runs") / table.name).resolve()
        home.mkdir(parents=True, exist_ok=True)
        monitoring = file.table("monitoring", MonitoringTable)
        return cls(
            file, table, broker, monitoring, home, Topics(table.name, broker.partitions, broker.retention_hours * 3600)
        )

    @property
    def url(self) -> str:
        return self.broker.url or f"sqlite://{self.directory / 'log'}"

    @property
    def colocated(self) -> bool:
        """Whether engine and learner share one set of devices in shifts: the only setting of the learner's table that actors need."""
        return bool(self.file.tables.get("learner", {}).get("colocated", False))

    def control_keys(self) -> Keys | None:
        """The keys of the control road, if the run file names some. Raises ControlError."""
        from broker.control.keys import Keys

        return Keys.read(self.file.resolve(self.broker.keys)) if self.broker.keys else None

    def open_log(self, stop: Stop | None = None, metrics: BrokerMetrics | None = None) -> Log:
        """The run's log, with its topics made. With ``stop`` (as in daemons), waits for a log that is away. Raises LogError.

        With ``metrics``, use of the log is counted there, and new groups begin at what is outstanding.
        """
        log = self._open_log() if stop is None else wait_for_log(self._open_log, stop)
        if metrics is None:
            return log
        return MeteredLog(log, metrics, self.topics.deadletters, outstanding(log, self.topics))

    def _open_log(self) -> Log:
        log = open_log(self.url, self.broker.engines, self.file.base)
        try:
            log.create(self.topics.specs())
        except LogError:
            log.close()
            raise
        return log


@contextlib.contextmanager
def announced(
    run: Run, name: str, role: str, registry: CollectorRegistry, pages: Mapping[str, Callable[[], str]] | None = None
) -> Iterator[Exporter]:
    """Serve ``registry`` (and JSON ``pages``) and register the daemon in the run's directory while the block runs."""
    exporter = Exporter(registry, run.monitoring.host, pages=pages or {})
    try:
        with registered(run.directory, name, role, _reachable(exporter.address)):
            yield exporter
    finally:
        exporter.close()


def _reachable(address: str) -> str:
    """``address``, or this machine's name if the address means all of its interfaces."""
    host, _, port = address.rpartition(":")
    return f"{socket.gethostname()}:{port}" if host in ("0.0.0.0", "::") else address


def arguments(role: str, description: str) -> argparse.ArgumentParser:
    """The arguments that every daemon takes: FILE, --set, --dir, --name."""
    parser = argparse.ArgumentParser(prog=role, description=description)
    parser.add_argument("file", type=Path, help="run file (TOML)")
    parser.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="TABLE.KEY=VALUE", help="override the run file"
    )
    parser.add_argument(
        "--dir",
        dest="directory",
        type=Path,
        default=None,
        metavar="RUN",
        help="the run's directory (default runs/NAME)",
    )
    parser.add_argument("--name", default=f"{role}-0", help="this daemon's own name in the run")
    return parser
