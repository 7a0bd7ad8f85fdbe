"""``headrace compare RUN@WHAT RUN@WHAT``: compare two checkpoints on the same questions, from the log.

Prints the difference with its interval, a test, and the questions that flipped. ``WHAT`` is a stage, a policy version,
or the name of an evaluation (``zero:200``); without it, the newest evaluations are compared. Both sides may be of one
run.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from broker.errors import RunFileError
from headrace.commands.arguments import as_json
from headrace.reading.answered import Answered, Chosen, answered, chosen
from headrace.reading.paired import Pair, Paired, paired
from headrace.running.rundir import reopen
from monitoring.view import clean_text

SHOWN, CHARACTERS, WHOLE = 5, 240, 20_000


def arguments(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("first", metavar="RUN@WHAT", help="a run's directory, and a stage, a step or an evaluation of it")
    sub.add_argument("second", metavar="RUN@WHAT", help="what it is compared with")
    sub.add_argument("--data", metavar="NAME", help="compare on this benchmark alone (its name, or its source)")
    sub.add_argument("--rewarder", metavar="NAME", default="", help="who judged, where old records do not say")
    sub.add_argument(
        "--show",
        type=int,
        default=SHOWN,
        metavar="N",
        help=f"flipped questions of each kind that are shown (default {SHOWN})",
    )
    as_json(sub)


def main(options: argparse.Namespace) -> int:
    """Print the comparison. Raises RunFileError if there is nothing to compare."""
    if options.show < 0:
        raise RunFileError(f"--show {options.show}: use a number of at least 0")
    given = (options.first, options.second)
    sides = [_side(Chosen.of(text), options.data, options.rewarder) for text in given]
    common = [name for name in sides[0] if name in sides[1]]
    if not common:
        raise RunFileError(
            f"no benchmark in common: {options.first} has {', '.join(sides[0])}, {options.second} has {', '.join(sides[1])}"
        )
    told = {}
    for name in common:
        first, second = sides[0][name], sides[1][name]
        if first.by_row != second.by_row:  # one side can only be matched by row, so match both by row
            first, second = (_side(Chosen.of(text), name, options.rewarder, by_row=True)[name] for text in given)
        found = paired(first.marks, second.marks)
        if found is None:
            raise RunFileError(f"{name}: no question in common; {len(first.marks)} and {len(second.marks)} were judged")
        told[name] = (first, second, found)
    if options.json:
        print(json.dumps({name: _wire(*found, options.show) for name, found in told.items()}, indent=2))
    else:
        print(
            clean_text(
                "\n".join(line for name, found in told.items() for line in lines(name, *found, options.show)), 200_000
            )
        )
    return 0


def _side(given: Chosen, data: str | None, rewarder: str, by_row: bool = False) -> dict[str, Answered]:
    """The evaluations of one side by benchmark."""
    place = f"{given.run}@{given.which}" if given.which else given.run
    run = reopen(Path(given.run))
    with closing(run.open_log()) as log:
        try:
            found = chosen(log, run.topics, given.which)
            if data is not None and data not in found:
                raise RunFileError(f"no evaluation on {data!r}; there are {', '.join(found)}")
            return {
                name: answered(log, run.topics, e, rewarder, by_row)
                for name, e in found.items()
                if data in (None, name)
            }
        except RunFileError as error:
            raise RunFileError(f"{place}: {error}") from error


def lines(name: str, first: Answered, second: Answered, found: Paired, show: int) -> Iterator[str]:
    """The comparison as text, a line each."""
    low, high = found.interval
    a, b = first.evaluation, second.evaluation
    yield f"{name}: {found.questions} questions, {a.k} and {b.k} samples each"
    for side, value in ((a, found.first), (b, found.second)):
        yield f"  {side.name} (version {side.step}): pass@1 {value:.3f}"
    yield f"  difference {found.difference:+.3f} [{low:+.3f}, {high:+.3f}], {found.test} p = {found.p:.3g}"
    yield f"  {len(found.better)} questions better, {len(found.worse)} worse, {found.questions - len(found.better) - len(found.worse)} the same"
    if any(found.alone):
        yield f"  left out: {found.alone[0]} questions that only the first has judged, {found.alone[1]} only the second"
    if first.by_row or second.by_row:
        yield "  paired by the numbers of their rows: the log no longer has the prompts"
    for word, pairs in (("better", found.better), ("worse", found.worse)):
        for pair in pairs[:show]:
            yield from _flipped(word, pair, first, second)


def _flipped(word: str, pair: Pair, first: Answered, second: Answered) -> Iterator[str]:
    question = first.questions.get(pair.key) or second.questions.get(pair.key) or pair.key
    yield f"  {word}: {_short(question)} ({pair.first:.2f} to {pair.second:.2f})"
    for side, right in ((first, word == "worse"), (second, word == "better")):
        text = _text(side, pair.key, right)
        yield f"    {side.evaluation.name}: {_short(text[-WHOLE:]) if text else 'its samples are gone'}"


def _text(side: Answered, key: str, right: bool) -> str:
    """One side's first response that is right (wrong, if not ``right``), else its first response; empty without any."""
    samples, marks = side.samples.get(key, {}), side.marks[key]
    order = sorted(samples)
    wanted = [i for place, i in enumerate(order) if marks[place : place + 1] == ("1" if right else "0")]
    return samples[(wanted or order)[0]].text if order else ""


def _short(text: str) -> str:
    """The beginning and the end of a text, on one line: the answer is at the end."""
    text = " ".join(text.split())
    half = CHARACTERS // 2
    return text if len(text) <= CHARACTERS else f"{text[:half]} ... {text[-half:]}"


def _wire(first: Answered, second: Answered, found: Paired, show: int) -> dict[str, Any]:
    def flips(pairs: tuple[Pair, ...], better: bool) -> list[dict[str, Any]]:
        return [
            {
                "question": first.questions.get(p.key) or second.questions.get(p.key) or p.key,
                "first": p.first, "second": p.second,
                "first_text": _text(first, p.key, not better)[:WHOLE], "second_text": _text(second, p.key, better)[:WHOLE],
            }
            for p in pairs[:show]
        ]  # fmt: skip

    return {
        "first": {"name": first.evaluation.name, "step": first.evaluation.step, "k": first.evaluation.k, "pass_at_1": found.first},
        "second": {"name": second.evaluation.name, "step": second.evaluation.step, "k": second.evaluation.k, "pass_at_1": found.second},
        "questions": found.questions, "difference": found.difference, "interval": list(found.interval),
        "test": found.test, "p": found.p, "better": len(found.better), "worse": len(found.worse), "alone": list(found.alone),
        "paired_by_row": first.by_row or second.by_row,
        "flipped": {"better": flips(found.better, True), "worse": flips(found.worse, False)},
    }  # fmt: skip
