"""What the single views of ``headrace top`` show beyond the overview, read from the log when they are looked at."""

from __future__ import annotations

import time
from collections.abc import Collection

from broker.errors import HeadraceError
from broker.log import Log, Reader
from broker.messages import DeadLetter, Manifest, Position, Settled
from broker.run import Run
from headrace.reading.records import read
from headrace.reading.trace import groups_of
from headrace.reading.tracetext import one_line, vote_text
from headrace.running.groups import groups_in_force
from monitoring.view import LetterView, QueueView, RunView, SampleView

LETTERS = 10  # number of dead letters that are kept for display
GROUPS = 3


class Details:
    """Fills a RunView's details from ``log``; it is in no consumer group."""

    def __init__(self, run: Run, log: Log) -> None:
        self._run, self._log = run, log
        self._readers: dict[str, Reader] = {}
        self._letters: dict[int, LetterView] = {}
        self._settled: dict[int, str] = {}
        self._known: set[int] = set()
        self._shown = 0

    def fill(self, view: RunView, shown: Collection[str], trained: Manifest | None) -> None:
        """Read what the views ``shown`` need; ``trained`` is the manifest of the last step. Raises HeadraceError."""
        if "queues" in shown or "letters" in shown:
            self._follow_letters(view)
        if "queues" in shown:
            view.lags = self._lags()
        if "samples" in shown and trained is not None and trained.step != self._shown:
            view.samples = self._samples(trained)
            self._shown = trained.step

    def _reader(self, topic: str) -> Reader:
        if topic not in self._readers:
            self._readers[topic] = self._log.reader(topic)
        return self._readers[topic]

    def _follow_letters(self, view: RunView) -> None:
        reader = self._reader(self._run.topics.deadletters)
        while records := reader.poll(512, 0.0):
            for record in records:
                message = read(record)
                if isinstance(message, DeadLetter):
                    self._known.add(record.offset)
                    where = f"{self._short(message.topic)}[{message.partition}] {message.offset}"
                    self._letters[record.offset] = LetterView(
                        record.offset, message.created or record.timestamp, where, message.group_id, message.worker, message.error
                    )  # fmt: skip
                elif isinstance(message, Settled):
                    self._settled[message.offset] = message.action
        self._letters = dict(sorted(self._letters.items())[-LETTERS:])
        for offset, letter in self._letters.items():
            letter.became = self._settled.get(offset, "waiting")
        view.letters = list(self._letters.values())
        view.letters_waiting = len(self._known - self._settled.keys())

    def _short(self, name: str) -> str:
        return name.removeprefix(f"{self._run.table.name}.")

    def _lags(self) -> list[QueueView]:
        found = []
        for group, topics in sorted(groups_in_force(self._run, self._log).items()):
            if group.startswith(f"{self._run.table.name}."):
                for topic in topics:
                    lag = self._log.lag(group, topic)
                    age = self._oldest(group, topic) if lag else None
                    found.append(QueueView(self._short(group), self._short(topic), lag, age))
        return found

    def _oldest(self, group: str, topic: str) -> float | None:
        """The age in seconds of the oldest record that the group has yet to commit."""
        done, begins, ends = self._log.committed(group, topic), self._log.begins(topic), self._log.ends(topic)
        times = []
        for partition, end in ends.items():
            start = max(done.get(partition, 0), begins[partition])
            if start < end:
                times.append(self._written(topic, Position(partition, start)))
        known = [t for t in times if t is not None]
        return max(0.0, time.time() - min(known)) if known else None

    def _written(self, topic: str, position: Position) -> float | None:
        try:
            return self._reader(topic).get([position])[0].timestamp
        except HeadraceError:  # no record lies there: a distributed log marks its transactions, retention removes
            return None

    def _samples(self, manifest: Manifest) -> list[SampleView]:
        """Of some groups of a step, the samples with the highest and with the lowest reward."""
        shown = []
        for group in groups_of(self._log, self._run.topics, manifest, GROUPS):
            samples = sorted((s for s in group["samples"] if s.get("reward") is not None), key=lambda s: -s["reward"])
            for sample in samples[:1] + samples[1:][-1:]:
                title = (
                    f"step {manifest.step}  {group['group_id']}#{sample['index']}  {one_line(group['question'], 60)}"
                )
                votes = "  ".join(vote_text(vote) for vote in sample["votes"])
                shown.append(SampleView(title, sample["reward"], votes, sample["text"]))
        return shown

    def close(self) -> None:
        for reader in self._readers.values():
            reader.close()
