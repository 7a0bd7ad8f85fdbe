"""The arguments of ``headrace broker``, apart from what carries them out: ``headrace --help`` loads no more than this."""

from __future__ import annotations

import argparse
from pathlib import Path

TOPICS = ("prompts", "trajectories", "rewards", "steps", "policy", "deadletters")


def arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
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
