"""Lists a run's daemons, and applies edits of the run file while the run is going on.

Edits of the rewarders and their mix apply at once; all other edits take effect at the next start.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from broker.errors import RunFileError
from broker.run import Run
from broker.runfile import RunFile, RunTable
from headrace.running.rundir import RUN_FILE, changes, record
from headrace.running.runfile import WholeRun, check
from headrace.running.supervisor import Command, Supervisor


def commands(whole: WholeRun, run: Run) -> list[Command]:
    """The daemons of a run on one machine."""
    common = (str(run.directory / RUN_FILE), "--dir", str(run.directory), "--name")
    ranks = whole.learner.learner.processes
    learner = ("learner.parallel.launch", str(ranks)) if ranks > 1 else ("learner",)
    out = [Command("learner-0", "learner", (*learner, *common, "learner-0"))]
    out += [Command(f"actor-{i}", "actor", ("actors", *common, f"actor-{i}")) for i in range(whole.actors.count)]
    for name, table in whole.rewarders.items():
        for i in range(0 if table.external else table.workers):
            daemon = f"{name}-{i}"
            out.append(Command(daemon, "rewarder", ("rewarders", *common, daemon, "--rewarder", name)))
    return out


class Edits:
    """Follows the run file that ``run`` was started with; ``follow`` is called now and then."""

    def __init__(self, run: Run, whole: WholeRun, supervisor: Supervisor, note: Callable[[str], None]) -> None:
        self._run, self._whole, self._supervisor, self._note = run, whole, supervisor, note
        self._file = run.file

    def follow(self) -> None:
        """Apply an edit if there is one. An invalid edit changes nothing."""
        try:
            edited = self._file.reread()
            if edited is None:
                return
            live = live_part(self._run.file, edited)
            whole = check(live)
        except RunFileError as error:
            self._note(f"the run file was edited, and nothing changed: {error}")
            return
        self._file = edited
        for change in changes(live.tables, edited.tables):
            self._note(f"edited, takes effect with the next start: {change}")
        found = changes(self._run.file.tables, live.tables)
        if not found:
            return
        self._run = replace(self._run, file=live, table=live.table("run", RunTable))
        record(self._run)
        old, self._whole = self._whole.rewarders, whole
        other = {name for name, table in whole.rewarders.items() if name in old and old[name] != table}
        named = {f"{name}-{i}" for name in other for i in range(whole.rewarders[name].workers)}
        self._supervisor.change(commands(whole, self._run), named)
        for change in found:
            self._note(f"edited, for the groups that are fed from now on: {change}")


def live_part(before: RunFile, edited: RunFile) -> RunFile:
    """``before`` with the rewarders and the mix of ``edited``."""
    tables = {**before.tables, "run": dict(before.tables.get("run", {}))}
    tables["run"]["rewards"] = edited.tables.get("run", {}).get("rewards", {})
    tables["rewarders"] = edited.tables.get("rewarders", {})
    return RunFile(tables, before.base, before.path, before.overrides)
