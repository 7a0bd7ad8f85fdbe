"""Looks up what the whole steps topic says about a few groups and steps, once an audit has suspects."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import NamedTuple

from broker.log import Log
from broker.messages import Artefact, Dropped, Evaluation, Manifest, Prompt
from broker.topics import Topics
from headrace.reading.records import scan
from learner.planning.fates import Fate, fate_of

FATES = {Manifest.TYPE: Fate.TRAINED, Evaluation.TYPE: Fate.EVALUATED, Artefact.TYPE: Fate.COLLECTED}


class End(NamedTuple):
    """A group ends: its fate, and the record that says so."""

    group_id: str
    fate: str
    where: str


class Elsewhere:
    """All that the steps topic says of some groups and of some steps, read once more from the beginning."""

    def __init__(self, ids: set[str], steps: set[int]) -> None:
        self._ids, self._steps = ids, steps
        self.ends: dict[str, list[End]] = defaultdict(list)
        self.samples: Counter[tuple[str, int]] = Counter()
        self.manifests: dict[int, list[Manifest]] = defaultdict(list)

    def look(self, log: Log, topics: Topics) -> None:
        for _, message in scan(log, topics.steps):
            if isinstance(message, Manifest):
                self._manifest(message)
            elif isinstance(message, Evaluation | Artefact):
                where = f"{message.TYPE} {message.name}"
                self._note(message.group_ids, message.dropped, FATES[message.TYPE], where)

    def _manifest(self, manifest: Manifest) -> None:
        where = f"manifest {manifest.kind} {manifest.step}"
        if manifest.kind not in ("close", "set_aside") and manifest.step in self._steps:
            self.manifests[manifest.step].append(replace(manifest, created=0.0))
        trained = (
            manifest.groups if manifest.kind == "step" and not manifest.again else ()
        )  # they ended with their first manifest
        self._note((group.group_id for group in trained), manifest.dropped, "trained", where)
        for group in trained:
            if group.group_id in self._ids:
                self.samples.update((group.group_id, index) for index in {s.sample for s in group.samples})

    def _note(self, ids: Iterable[str], dropped: Iterable[Dropped], fate: str, where: str) -> None:
        found = [End(group_id, fate, where) for group_id in ids]
        found += [End(d.group_id, fate_of(d.reason), where) for d in dropped]
        for end in found:
            if end.group_id in self._ids:
                self.ends[end.group_id].append(end)

    def prompts(self, log: Log, topics: Topics, group_id: str) -> Iterator[Prompt]:
        """Everything that was fed under this name."""
        for _, message in scan(log, topics.prompts):
            if isinstance(message, Prompt) and message.group_id == group_id:
                yield message
