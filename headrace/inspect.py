"""Commands that look at a run: verify, trace, replay, report, and the log itself."""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from typing import Any

from broker.errors import DecodeError, RunFault, RunFileError
from broker.messages import DeadLetter
from broker.run import Run
from headrace.records import scan
from headrace.rundir import reopen
from monitoring.view import clean_text


def verify_command(options: argparse.Namespace) -> int:
    """0 if the log is sound, 1 if not."""
    from headrace.verify import verify

    run = reopen(options.run)
    log = run.open_log()
    audit = verify(log, run.topics)
    log.close()
    if options.json:
        print(json.dumps({"ok": not audit.problems, **dataclasses.asdict(audit)}, indent=2))
    else:
        for name in (
            "fed",
            "trained",
            "dropped",
            "dead_lettered",
            "evaluated",
            "outstanding",
            "steps",
            "samples_trained",
            "dead_letters",
        ):
            print(f"{name:16} {getattr(audit, name)}")
        for problem in audit.problems:
            print(f"PROBLEM: {problem}")
        print("sound" if not audit.problems else "NOT SOUND")
    return 1 if audit.problems else 0


def trace_command(options: argparse.Namespace) -> int:
    from headrace.trace import trace

    run = reopen(options.run)
    log = run.open_log()
    lineage = trace(log, run.topics, options.step)
    log.close()
    if options.json:
        print(json.dumps(lineage, indent=2))
        return 0
    print(f"step {lineage['step']} of stage {lineage['stage']}: {len(lineage['groups'])} groups")
    for group in lineage["groups"]:
        print(f"\n{group['group_id']}  prompts{group['prompt']}  {clean_text(group['question'], 100)}")
        for sample in group["samples"]:
            votes = "  ".join(
                f"{v['rewarder']}={v['value'] if v['outcome'] == 'value' else v['outcome']}" for v in sample["votes"]
            )
            text = clean_text(sample["text"], 80).replace("\n", " ")
            print(
                f"  #{sample['index']:<3} at {sample['position']}  staleness {sample['staleness']}  {sample['tokens']} tokens  {votes}  {text}"
            )
    return 0


def replay_command(options: argparse.Namespace) -> int:
    first, sign, last = options.steps.partition("-")
    if not first.isdigit() or (sign and not last.isdigit()):
        raise RunFileError(f"--steps {options.steps!r}: write A-B")
    run = reopen(options.run)
    changed = reopen(options.run, options.overrides) if options.overrides else None
    from learner.replay import replay

    print(replay(run, int(first), int(last or first), options.out, changed))
    return 0


def report_command(options: argparse.Namespace) -> int:
    from headrace.run import write_report
    from headrace.summary import add_wall_seconds

    write_report(reopen(options.run), add_wall_seconds(options.run, 0.0))
    print(options.run / "report.html")
    return 0


def broker_command(options: argparse.Namespace) -> int:
    run = reopen(options.run)
    answer = BROKER[options.what](run, options)
    if options.json:
        print(json.dumps(answer, indent=2, default=str))
    else:
        for row in answer:
            print("  ".join(f"{k} {v}" for k, v in row.items()))
    return 0


def _topics(run: Run, options: argparse.Namespace) -> list[dict[str, Any]]:
    log = run.open_log()
    rows = []
    for name, spec in log.topics().items():
        begins, ends = log.begins(name), log.ends(name)
        rows.append(
            {
                "topic": name,
                "partitions": spec.partitions,
                "records": sum(ends[p] - begins[p] for p in ends),
                "compacted": spec.compacted,
            }
        )
    log.close()
    return rows


def _lag(run: Run, options: argparse.Namespace) -> list[dict[str, Any]]:
    log = run.open_log()
    rows = [
        {"group": group, "topic": topic, "lag": log.lag(group, topic)}
        for group, topics in log.groups().items()
        for topic in topics
    ]
    log.close()
    return rows


def _tail(run: Run, options: argparse.Namespace) -> list[dict[str, Any]]:
    name = options.topic or "steps"
    topic = getattr(run.topics, name, None)
    if not isinstance(topic, str) or name == "run":
        raise RunFileError(f"topic {name!r} is none of prompts, trajectories, rewards, steps, policy, deadletters")
    log = run.open_log()
    rows = []
    for record, message in list(scan(log, topic))[-options.count :]:
        what = message.reason if isinstance(message, DecodeError) else clean_text(str(message), 300)
        rows.append(
            {
                "partition": record.partition,
                "offset": record.offset,
                "at": time.strftime("%H:%M:%S", time.localtime(record.timestamp)),
                "what": what,
            }
        )
    log.close()
    return rows


def _dlq(run: Run, options: argparse.Namespace) -> list[dict[str, Any]]:
    log = run.open_log()
    rows = []
    for record, letter in scan(log, run.topics.deadletters):
        if isinstance(letter, DeadLetter):
            rows.append(
                {"offset": record.offset, "from": f"{letter.topic}[{letter.partition}] {letter.offset}", "group": letter.group_id,
                 "worker": letter.worker, "bytes": len(letter.value), "error": clean_text(letter.error, 200)}
            )  # fmt: skip
    log.close()
    return rows


BROKER = {"topics": _topics, "lag": _lag, "tail": _tail, "dlq": _dlq}


def doctor_command(options: argparse.Namespace) -> int:
    """What this machine has. 0 if a run can be started on it."""
    import os
    import platform
    import shutil

    from headrace.summary import versions

    if options.run is not None:
        raise RunFault("the doctor looks at the machine; for a run use `headrace verify` and `headrace broker lag`")
    free = shutil.disk_usage(".").free
    facts = {
        **versions(),
        "cores": os.cpu_count(),
        "free disk (GB)": round(free / 1e9, 1),
        "platform": platform.platform(),
    }
    for name, value in facts.items():
        print(f"{name:16} {value}")
    return 0 if free > 1 << 30 and "absent" not in facts.values() else 1
