"""The consumer groups that a run still has."""

from __future__ import annotations

from broker.log import Log
from broker.run import Run
from headrace.running.rundir import tables_in_force


def groups_in_force(run: Run, log: Log) -> dict[str, tuple[str, ...]]:
    """The log's consumer groups with their topics, without those of rewarders that have left the run file: nobody waits
    for their votes, and what they have not read grows for ever.
    """
    start, known = run.topics.group("rewarder."), tables_in_force(run).get("rewarders", {})
    return {
        group: topics for group, topics in log.groups().items()
        if not group.startswith(start) or group.removeprefix(start) in known
    }  # fmt: skip
