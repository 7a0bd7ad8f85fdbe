"""What a supervised step has read, as its record in the log says it: numbers, rows of each source, and a digest of the tokens."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Mapping, Sequence

from broker.messages import IntArray

log_ = logging.getLogger("learner")
CHARACTERS = 16


def digest(tokens: Iterable[IntArray]) -> str:
    """Of documents in their order."""
    found = hashlib.sha256()
    for document in tokens:
        found.update(len(document).to_bytes(8, "little") + document.astype("<i4").tobytes())
    return found.hexdigest()[:CHARACTERS]


def rows_of(places: Sequence[tuple[str, int]]) -> dict[str, tuple[tuple[int, int], ...]]:
    """Sources and rows in the order in which they were read, as runs of (first row, how many) of each source."""
    runs: dict[str, list[tuple[int, int]]] = {}
    for name, row in places:
        found = runs.setdefault(name, [])
        if found and sum(found[-1]) == row:
            found[-1] = found[-1][0], found[-1][1] + 1
        else:
            found.append((row, 1))
    return {name: tuple(found) for name, found in runs.items()}


class Redone:
    """Compares the steps that are made again after a checkpoint with what the log says of their first time: ``before`` has the digest of
    each, by stage and step."""

    def __init__(self, before: Mapping[tuple[int, int], str]) -> None:
        self._before = dict(before)

    def check(self, stage: int, step: int, documents: tuple[int, int, str]) -> bool:
        """Whether the step has read what it read before, if it has been made before; says so where it has not."""
        same = self._before.pop((stage, step), documents[2]) == documents[2]
        if not same:
            log_.warning(
                "step %d of stage %d reads other documents than before the restart (%d from number %d on): the data or the stage's table was "
                "changed meanwhile; the step as it is made now holds", step, stage, documents[1], documents[0],
            )  # fmt: skip
        return same
