"""``headrace broker``: create, inspect and clean up a run's log; the same on every engine.

init FILE           create the topics, and reject existing ones whose settings would lose data
topics | lag RUN    list the topics; list how many records the consumer groups have yet to read
tail RUN            print the newest records of a topic
dlq list RUN        list the dead letters; ``show`` one; ``drop`` some for good; ``replay`` some: a record goes to its
                    topic again; the learner reads a row of the data, or trains a step that was set aside, again
delete RUN          with --yes, remove all topics and consumer groups of a run that has ended
trim RUN            remove the records that neither a resume nor the last ``--keep-steps`` steps need
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from broker.errors import DecodeError, LogError, RunFileError
from broker.log import Log
from broker.messages import DeadLetter, PlannerState, Settled, Trimmed, encode
from broker.run import Run
from broker.spelling import nearest
from broker.topics import STEPS_OWNER
from headrace.reading.history import History, find_step, whole
from headrace.reading.records import newest, scan
from headrace.running.rundir import find_run
from monitoring.view import clean_text

Rows = list[dict[str, Any]]
RECENT = 8  # how many of the last records of the steps topic are searched first for the newest manifest
TOPICS = ("prompts", "trajectories", "rewards", "steps", "policy", "deadletters", "sessions")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subcommands and their arguments."""
    parsers = parser.add_subparsers(dest="what", required=True, metavar="WHAT")

    def add(name: str, text: str, run: bool = True) -> argparse.ArgumentParser:
        sub = parsers.add_parser(name, help=text, description=text)
        sub.add_argument("--json", action="store_true")
        if run:
            sub.add_argument("run", type=Path, metavar="RUN", help="a run's directory, or the run file that starts it")
        return sub

    init = add("init", "make and check a run's topics", run=False)
    init.add_argument("file", type=Path, metavar="FILE")
    init.add_argument("--set", dest="overrides", action="append", default=[], metavar="TABLE.KEY=VALUE")
    add("topics", "the topics and their sizes")
    add("lag", "what the consumer groups have yet to read")
    tail = add("tail", "the newest records of a topic")
    tail.add_argument("--topic", default="steps", help=", ".join(TOPICS))
    tail.add_argument("--count", type=int, default=10)
    dlq = add("dlq", "the dead letters", run=False)
    dlq.add_argument("action", choices=("list", "show", "replay", "drop"))
    dlq.add_argument("run", type=Path, metavar="RUN")
    dlq.add_argument(
        "offsets", type=int, nargs="*", metavar="OFFSET", help="of the dead letters; replay and drop: all if none"
    )
    dlq.add_argument("--all", action="store_true", help="list: those that were dealt with too")
    trim = add("trim", "remove the records that nobody needs")
    trim.add_argument("--keep-steps", type=int, default=0, metavar="N", help="keep what the last N steps were made of")
    trim.add_argument("--dry-run", action="store_true")
    delete = add("delete", "remove all topics and consumer groups of a run that has ended")
    delete.add_argument("--yes", action="store_true", help="do it; without, say what would be removed")


def main(options: argparse.Namespace) -> int:
    if options.what == "init":
        run = Run.open(options.file, options.overrides)
    else:
        of_file = options.what == "delete" and options.run.is_file()  # the directory may be gone already
        run = Run.open(options.run) if of_file else find_run(options.run)
    with closing(run.open_log()) as log:
        rows = COMMANDS[options.what](run, log, options)
    if options.json:
        print(json.dumps(rows, indent=2, default=str))
    else:
        for row in rows:
            print("  ".join(f"{k} {v}" for k, v in row.items()))
    return 0


def _of_run(run: Run, topic: str) -> bool:
    """Whether ``topic`` belongs to this run. Runs share a cluster, and one's name may be a prefix of another's."""
    return topic in {run.topics.sessions, *(spec.name for spec in run.topics.specs())}


def _groups(run: Run, log: Log) -> dict[str, tuple[str, ...]]:
    """The run's consumer groups by name, each with its topics."""
    return {
        group: topics for group, topics in log.groups().items()
        if group.startswith(f"{run.table.name}.") and all(_of_run(run, topic) for topic in topics)
    }  # fmt: skip


def _topics(run: Run, log: Log, options: argparse.Namespace) -> Rows:
    rows = []
    for name, spec in log.topics().items():
        if _of_run(run, name):
            begins, ends = log.begins(name), log.ends(name)
            rows.append(
                {
                    "topic": name,
                    "partitions": spec.partitions,
                    "records": sum(ends[p] - begins[p] for p in ends),
                    "compacted": spec.compacted,
                    "retention_seconds": spec.retention_seconds,
                }
            )
    return rows


def _lag(run: Run, log: Log, options: argparse.Namespace) -> Rows:
    return [{"group": g, "topic": t, "lag": log.lag(g, t)} for g, topics in _groups(run, log).items() for t in topics]


def _tail(run: Run, log: Log, options: argparse.Namespace) -> Rows:
    if options.topic not in TOPICS:
        raise RunFileError(f"--topic {options.topic!r} is no topic of a run{nearest(options.topic, TOPICS)}")
    rows = []
    for record, message in newest(log, getattr(run.topics, options.topic), max(1, options.count)):
        what = message.reason if isinstance(message, DecodeError) else clean_text(str(message), 300)
        rows.append(
            {
                "partition": record.partition,
                "offset": record.offset,
                "at": time.strftime("%H:%M:%S", time.localtime(record.timestamp)),
                "what": what,
            }
        )
    return rows


def letters(run: Run, log: Log) -> tuple[dict[int, DeadLetter], dict[int, str]]:
    """The dead letters by offset, and by offset what became of the settled ones (``replayed`` or ``dropped``)."""
    found: dict[int, DeadLetter] = {}
    settled: dict[int, str] = {}
    for record, message in scan(log, run.topics.deadletters):
        if isinstance(message, DeadLetter):
            found[record.offset] = message
        elif isinstance(message, Settled):
            settled[message.offset] = message.action
    return found, settled


def _dlq(run: Run, log: Log, options: argparse.Namespace) -> Rows:
    found, settled = letters(run, log)
    for offset in options.offsets:
        if offset not in found:
            raise LogError(f"there is no dead letter at offset {offset}; `headrace broker dlq list` has them")
    if options.action == "list":
        return [_row(o, found[o], settled) for o in found if options.all or o not in settled]
    if options.action == "show":
        chosen = options.offsets or sorted(found)
        return [{**_row(o, found[o], settled), "key": found[o].key.decode("utf-8", "replace"), "value": found[o].value.hex()}
                for o in chosen]  # fmt: skip
    return _settle(run, log, {o: found[o] for o in options.offsets or found if o not in settled}, options.action)


def _row(offset: int, letter: DeadLetter, settled: Mapping[int, str]) -> dict[str, Any]:
    return {
        "offset": offset, "from": f"{letter.topic}[{letter.partition}] {letter.offset}", "group": letter.group_id,
        "worker": letter.worker, "bytes": len(letter.value), "became": settled.get(offset, "waiting"),
        "error": clean_text(letter.error, 200),
    }  # fmt: skip


def _settle(run: Run, log: Log, chosen: Mapping[int, DeadLetter], action: str) -> Rows:
    """Replay or drop dead letters.

    A replayed record is sent to its topic again; the learner ignores it if its group has ended. A replayed row of the
    data is read again, and a step that was set aside is tried again.
    """
    done = "replayed" if action == "replay" else "dropped"
    with closing(log.producer()) as producer:
        for offset, letter in chosen.items():
            if action == "replay" and letter.topic != run.topics.steps and not letter.topic.startswith("data."):
                producer.send(letter.topic, letter.key, letter.value, letter.partition)
            settled = Settled(offset, done, time.time())
            producer.send(run.topics.deadletters, letter.topic.encode(), encode(settled))
        producer.flush()
    return [{"offset": offset, "became": done, **_next(run, letter, action)} for offset, letter in chosen.items()]


def _next(run: Run, letter: DeadLetter, action: str) -> dict[str, str]:
    """What the learner does with a replayed letter that is a row of the data or a step, not a record of a topic."""
    if action == "replay" and letter.topic == run.topics.steps:
        return {"next": "trained again by the next step of its stage, if that is under way"}
    if action == "replay" and letter.topic.startswith("data.") and not letter.key.isdigit():
        return {"next": "joins the next step of its stage, if that is under way"}
    return {}


def needed(run: Run, log: Log, keep_steps: int) -> dict[str, dict[int, int]]:
    """For each topic and partition, the offset below which no record is needed: neither by the outstanding groups, nor
    by a redo from the newest checkpoint, nor by the last ``keep_steps`` steps. Without a checkpoint, a redo needs all.
    """
    from learner.training.checkpoint import Checkpoints

    found = Checkpoints(run.directory / "checkpoints").newest()
    if found is None:
        return {topic: {} for topic in (run.topics.prompts, run.topics.trajectories, run.topics.rewards)}
    last = History.recent(log, run.topics, RECENT).newest_manifest()
    state = last.state if last is not None else PlannerState()
    low = {
        run.topics.prompts: dict(state.prompts),
        run.topics.trajectories: dict(state.trajectories),
        run.topics.rewards: dict(state.rewards),
    }
    first = min(found[1].version + 1, (last.step if last is not None else 0) - keep_steps + 1)
    history = History.of(log, run.topics, find_step(log, run.topics, first))
    for manifest in whole(log, run.topics, [head for head in history.manifests if head.step >= first]):
        for group in manifest.groups:
            _lower(low[run.topics.prompts], *group.prompt)
            for sample in group.samples:
                _lower(low[run.topics.trajectories], *sample.position)
                for vote in sample.votes:
                    _lower(low[run.topics.rewards], *vote.position)
    return low


def _lower(low: dict[int, int], partition: int, offset: int) -> None:
    low[partition] = min(low.get(partition, 0), offset)


def _trim(run: Run, log: Log, options: argparse.Namespace) -> Rows:
    rows = []
    for topic, offsets in needed(run, log, options.keep_steps).items():
        begins = log.begins(topic)
        count = sum(max(0, offset - begins[partition]) for partition, offset in offsets.items())
        if not options.dry_run and count:
            with closing(log.producer()) as producer:  # first, so that no audit finds an unexplained gap
                producer.send(run.topics.deadletters, topic.encode(), encode(Trimmed(topic, offsets, time.time())))
                producer.flush()
            log.trim(topic, offsets)
        rows.append({"topic": topic, "removable" if options.dry_run else "removed": count})
    return rows


def _delete(run: Run, log: Log, options: argparse.Namespace) -> Rows:
    """Delete the run's topics and groups, if ``--yes`` is given. The run's directory stays for the user to remove."""
    served = [run.topics.sessions] if run.topics.sessions in log.topics() else []
    topics = [*(spec.name for spec in run.topics.specs()), *served]
    groups = [*_groups(run, log), run.topics.group(STEPS_OWNER)]
    if options.yes:
        log.exclusive_producer(run.topics.group(STEPS_OWNER), "headrace broker delete").close()  # no learner is alive
        log.delete(topics, groups)
    what = "removed" if options.yes else "would be removed (--yes does it)"
    return [{"topic": name, "became": what} for name in topics] + [{"group": name, "became": what} for name in groups]


def _init(run: Run, log: Log, options: argparse.Namespace) -> Rows:
    return _topics(run, log, options)


COMMANDS: dict[str, Callable[[Run, Log, argparse.Namespace], Rows]] = {
    "init": _init, "topics": _topics, "lag": _lag, "tail": _tail, "dlq": _dlq, "trim": _trim, "delete": _delete,
}  # fmt: skip
