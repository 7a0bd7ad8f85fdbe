"""Checks whose records a log holds: a run name reused with another directory would mix with the earlier run's records."""

from __future__ import annotations

from pathlib import Path

from broker.errors import DecodeError, RunFault
from broker.log import Log
from broker.messages import PolicyVersion, decode
from broker.run import Run


def refuse_records_of_another(run: Run, log: Log) -> None:
    """Raises RunFault if the log already holds a run of this name that was made in another directory.

    A directory that was moved still has its checkpoints, and is accepted.
    """
    if any((run.directory / "checkpoints").glob("*")):
        return
    published = newest_policy(log, run.topics.policy)
    if published is None or not published.path or Path(published.path).is_relative_to(run.directory):
        return
    home = Path(published.path).parent.parent
    raise RunFault(
        f"{run.url} already holds a run named {run.table.name!r}, with version {published.version}, that was made in {home}; {run.directory} has "
        f"no checkpoint of it. Choose another [run] name, go on with --dir {home}, or remove its records: headrace broker delete {run.file.path}"
    )


def newest_policy(log: Log, topic: str) -> PolicyVersion | None:
    """The newest policy that a run has announced; None if there is none."""
    reader, found = log.reader(topic), None
    ends = log.ends(topic)
    try:
        while any(offset < ends[p] for p, offset in reader.offsets().items()):
            records = reader.poll(256, 1.0)
            for record in records:
                try:
                    message = decode(record.value)
                except DecodeError:
                    continue
                if isinstance(message, PolicyVersion):
                    found = message
            if not records:
                break
    finally:
        reader.close()
    return found
