"""``headrace contamination FILE``: list training rows that share a sequence of words with a benchmark's question."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import Any

from broker.errors import RunFileError
from broker.runfile import RunFile
from headrace.commands.arguments import as_json, run_file
from headrace.running.runfile import WholeRun, check
from learner.chosen import benchmarked, contamination
from learner.data.contamination import Benchmarked, Contamination
from learner.data.registry import open_documents, open_prompts
from learner.tables import SupervisedTable
from monitoring.view import clean_text

ENDLESS = 10_000
SHOWN = 20


def arguments(sub: argparse.ArgumentParser) -> None:
    run_file(sub)
    sub.add_argument("--ngram", type=int, metavar="N", help="words in a row (default: as each source's select says)")
    as_json(sub)


def main(options: argparse.Namespace) -> int:
    """Returns 0 if no training row is contaminated, else 1. Raises RunFileError, DataError."""
    if options.ngram is not None and options.ngram < 4:
        raise RunFileError(f"--ngram {options.ngram}: use 4 words or more")
    whole = check(RunFile.read(options.file, options.overrides))
    found = list(looked(whole, options.ngram))
    if options.json:
        print(json.dumps([one.to_json() for one in found], indent=2))
    else:
        for one in found:
            print(clean_text("\n".join(lines(one)), 100_000))
    return int(any(one.hits for one in found))


def looked(whole: WholeRun, ngram: int | None = None) -> Iterator[Contamination]:
    """Search each source that a stage trains on or collects from; of an endless one, the first ``ENDLESS`` rows."""
    config = whole.learner
    against: dict[int, Benchmarked] = {}
    done: set[str] = set()
    for stage in config.stages:
        asked = {benchmark.data for benchmark in getattr(stage, "asked", dict)().values()}
        read = set(getattr(stage, "weights", dict)()) or set(stage.sources().values()) - asked
        for name in sorted((read & config.data.keys()) - done):
            done.add(name)
            documents = isinstance(stage, SupervisedTable)
            opening = open_documents if documents else open_prompts
            source: Any = opening(name, config.data[name], whole.file)
            n = ngram or config.data[name].select.ngram
            if n not in against:
                against[n] = benchmarked(config, n)
            size = source.size if source.size is not None else ENDLESS
            yield contamination(config, name, source, range(size), against[n], documents)


def lines(found: Contamination) -> Iterator[str]:
    places = ", ".join(f"{n} with [data.{name}]" for name, n in found.by_benchmark().items())
    yield f"[data.{found.source}]: {len(found.hits)} of {found.rows} rows share {found.ngram} words or a whole question{': ' + places if places else ''}"
    for hit in found.hits[:SHOWN]:
        yield f"  row {hit.row} and [data.{hit.benchmark}] row {hit.of_row}: {hit.shared[:160]}"
    if len(found.hits) > SHOWN:
        yield f"  and {len(found.hits) - SHOWN} more (--json has {min(len(found.hits), 1000)})"
