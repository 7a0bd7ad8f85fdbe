"""A run as every daemon sees it: the run file's shared tables, its directory, its topics and its log."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from broker.errors import LogError
from broker.log import Log, open_log
from broker.patience import wait_for_log
from broker.runfile import BrokerTable, RunFile, RunTable
from broker.topics import Topics
from monitoring.daemon import Stop

if TYPE_CHECKING:
    from broker.control.keys import Keys


@dataclass(frozen=True, slots=True)
class Run:
    """``directory`` holds log/, checkpoints/, weights/, logs/, daemons/; ``file`` is the run file with its overrides."""

    file: RunFile
    table: RunTable
    broker: BrokerTable
    directory: Path
    topics: Topics

    @classmethod
    def open(cls, path: Path, overrides: list[str] | None = None, directory: Path | None = None) -> Run:
        """Read ``path``; ``directory`` is by default ``runs/NAME`` below the working directory. Raises RunFileError."""
        file = RunFile.read(path, overrides or ())
        table, broker = file.table("run", RunTable), file.table("broker", BrokerTable)
        home = (directory or Path("runs") / table.name).resolve()
        home.mkdir(parents=True, exist_ok=True)
        return cls(file, table, broker, home, Topics(table.name, broker.partitions, broker.retention_hours * 3600))

    @property
    def url(self) -> str:
        return self.broker.url or f"sqlite://{self.directory / 'log'}"

    def control_keys(self) -> Keys | None:
        """The keys of the control road, if the run file names some. Raises ControlError."""
        from broker.control.keys import Keys

        return Keys.read(self.file.resolve(self.broker.keys)) if self.broker.keys else None

    def open_log(self, stop: Stop | None = None) -> Log:
        """The run's log, with its topics made. With ``stop``, as daemons do, waits for one that is away. Raises LogError."""
        if stop is not None:
            return wait_for_log(self.open_log, stop)
        log = open_log(self.url)
        try:
            log.create(self.topics.specs())
        except LogError:
            log.close()
            raise
        return log


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
