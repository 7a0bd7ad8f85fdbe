"""``kind = "reject"``: rejection sampling. The policy answers questions several times; good answers become documents.

The result is an artefact of the stage's name: ``RUN/artefacts/NAME.jsonl`` with one document a line, and a record in
the log that gives for each group the positions of the kept samples, or why none was kept. Later stages train on it with
``data = "NAME"``. Source: DeepSeek-R1 (arXiv 2501.12948), section 2.3.3.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from pydantic import Field

from broker.messages import Artefact, ChatMessage, Dropped, Ending, Trajectory
from learner.planning.collect import Collection
from learner.planning.fates import Reason
from learner.planning.groups import Group, Judged
from learner.stages.stage import Stage, begin_with_model
from learner.tables import SamplingTable
from monitoring.files import replace
from monitoring.writing import foreign_share, repeated_ngrams

if TYPE_CHECKING:
    from learner.learner import Learner


log = logging.getLogger("learner")


class RejectStage(Stage):
    """Samples ``samples`` answers to each of the first ``questions`` rows of ``data``, and keeps at most ``keep``
    distinct right ones.

    An answer is right if every rewarder of ``require`` gives it at least its value (``{ accuracy = 1.0 }``); a judge
    for what no rule can verify is a rewarder like any other (``{ judge = 0.5 }``). An answer is also left out if its
    share of repeated ``ngram``-grams is above ``max_repetition``; if the share of its words in another script than most
    is above ``max_foreign``; if a paragraph has more than ``max_paragraph`` characters (0: any length); if it has a
    block of code and ``code`` is false; or if it has more than ``max_tokens`` tokens (0: any length). With
    ``prefer_short``, shorter answers are kept before longer ones.
    """

    data: str = "prompts"
    questions: int = Field(default=1000, ge=1)
    samples: int = Field(default=8, ge=1)
    keep: int = Field(default=1, ge=1)
    require: dict[str, float] = Field(default_factory=lambda: {"accuracy": 1.0})
    sampling: SamplingTable | None = None
    ngram: int = Field(default=8, ge=1)
    max_repetition: float = Field(default=0.3, ge=0, le=1)
    max_foreign: float = Field(default=1.0, ge=0, le=1)
    max_paragraph: int = Field(default=0, ge=0)
    max_tokens: int = Field(default=0, ge=0)
    code: bool = True
    prefer_short: bool = False

    def sources(self) -> Mapping[str, str]:
        return {"data": self.data}

    def judges(self) -> Mapping[str, str]:
        return {f"require.{name}": name for name in self.require}

    def run(self, learner: Learner, index: int) -> bool:
        begin_with_model(learner, index, self)
        learner.publish()
        path = learner.run.directory / "artefacts" / f"{self.name}.jsonl"

        def finish(collection: Collection, groups: Sequence[Group], lost: Sequence[Dropped]) -> Ending:
            return self.made(collection, groups, lost, path, learner.run.directory)

        sampling = self.sampling or learner.config.learner.sampling
        learner.collect(index, self.name, self.data, self.questions, self.samples, sampling, finish)
        return learner.wait_collections()

    def made(
        self, collection: Collection, groups: Sequence[Group], lost: Sequence[Dropped], path: Path, home: Path
    ) -> Artefact:
        """Write the documents of ``groups`` to ``path``; returns the record of what was kept."""
        kept, dropped, documents = [], list(lost), []
        domains: dict[str, Counter[str]] = defaultdict(Counter)
        for group in groups:
            chosen, reasons = self.chosen(group)
            counts = domains[group.prompt.kind or group.prompt.dataset]
            counts.update({"questions": 1, "samples": len(group.samples), "kept": len(chosen), "solved": bool(chosen)})
            counts.update(reasons)
            if chosen:
                kept.append(group.ref([Judged(sample, 1.0) for sample in chosen]))
                documents += [_document(sample, group) for sample in chosen]
            else:
                why = reasons.most_common(1)[0][0] if reasons else "no answer"
                dropped.append(Dropped(group.id, f"{Reason.REJECTED}: {why}", group.tokens))
        path.parent.mkdir(parents=True, exist_ok=True)
        text = "".join(json.dumps(document, ensure_ascii=False) + "\n" for document in documents)
        replace(path, text)
        lengths = [document["metadata"]["tokens"] for document in documents]
        for line in table_lines(statistics(documents)):
            log.info("%s: %s", collection.name, line)
        return Artefact(
            name=collection.name,
            stage=collection.stage,
            step=collection.step,
            kind="documents",
            path=str(path.relative_to(home)),
            sha256=hashlib.sha256(text.encode()).hexdigest(),
            kept=tuple(kept),
            dropped=tuple(dropped),
            metrics={
                "documents": float(len(documents)),
                "questions": float(len(groups) + len(lost)),
                "tokens_mean": fmean(lengths) if lengths else 0.0,
            },
            about={
                "domains": {name: dict(counts) for name, counts in domains.items()},
                "statistics": statistics(documents),
            },
            created=time.time(),
        )

    def chosen(self, group: Group) -> tuple[list[Trajectory], Counter[str]]:
        """The kept samples of a group, and how many of the others were rejected for each reason."""
        reasons: Counter[str] = Counter()
        passed: list[Trajectory] = []
        seen: set[str] = set()
        for index in sorted(group.samples):
            sample = group.samples[index][0]
            why = self.refused(sample, group.votes_on(index))
            if not why and " ".join(sample.text.split()) in seen:
                why = "twice"
            if why:
                reasons[why] += 1
                continue
            seen.add(" ".join(sample.text.split()))
            passed.append(sample)
        if self.prefer_short:
            passed.sort(key=lambda sample: sample.response_tokens)
        reasons["more than asked"] += max(0, len(passed) - self.keep)
        return passed[: self.keep], +reasons

    def refused(self, sample: Trajectory, votes: Mapping[str, Any]) -> str:
        """Why an answer is rejected; empty if it is not."""
        if sample.finish_reason != "stop":
            return "unfinished"
        if not sample.text.strip():
            return "empty"
        for name, least in self.require.items():
            vote = votes.get(name)
            if vote is None or vote.value is None:
                return f"not judged by {name}"
            if vote.value < least:
                return f"{name} below {least:g}"
        if self.max_tokens and sample.response_tokens > self.max_tokens:
            return "too long"
        if not self.code and "```" in sample.text:
            return "code block"
        if self.max_paragraph and max(map(len, sample.text.split("\n\n"))) > self.max_paragraph:
            return "long paragraph"
        repeated, grams = repeated_ngrams(sample.text, self.ngram)
        if repeated > self.max_repetition * grams:
            return "repetition"
        if self.max_foreign < 1 and foreign_share(sample.text) > self.max_foreign:
            return "mixed languages"
        return ""


def statistics(documents: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """For each domain and for all (``total``): the number of documents and the means of rounds and tokens, as the paper
    reports them for its supervised data.
    """
    found: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for document in documents:
        found[document["kind"] or "other"].append(document)
    named = dict(sorted(found.items())) | ({"total": list(documents)} if documents else {})
    return {
        name: {
            "documents": float(len(rows)),
            "rounds_mean": fmean(1 + sum(m["role"] == "assistant" for m in row["messages"]) for row in rows),
            "tokens_mean": fmean(row["metadata"]["tokens"] for row in rows),
        }
        for name, rows in named.items()
    }


def table_lines(found: Mapping[str, Mapping[str, float]]) -> list[str]:
    """``statistics`` as a text table: the heading, and a line for each domain."""
    head = f"{'domain':<20} {'documents':>10} {'rounds':>7} {'tokens':>8}"
    return [head] + [
        f"{name[:20]:<20} {row['documents']:>10.0f} {row['rounds_mean']:>7.1f} {row['tokens_mean']:>8.1f}"
        for name, row in found.items()
    ]


def _said(sample: Trajectory) -> tuple[Sequence[ChatMessage], str]:
    """The turns between the prompt and the last reply, and that reply. Leaves out what an environment said after it."""
    replies = [place for place, turn in enumerate(sample.turns) if turn.role == "assistant"]
    return (sample.turns[: replies[-1]], sample.turns[replies[-1]].content) if replies else ((), sample.text)


def _document(sample: Trajectory, group: Group) -> dict[str, Any]:
    """A row for ``TableDocuments``, with the sample's position in the log and the template options of its prompt."""
    position = group.samples[sample.index][1]
    template = {"chat": dict(group.prompt.template)} if group.prompt.template else {}
    before, response = _said(sample)
    return {
        **template,
        "messages": [{"role": role, "content": content} for role, content in (*sample.messages, *before)],
        "response": response,
        "kind": sample.kind,
        "metadata": {
            "sample": sample.id,
            "position": list(position),
            "versions": [list(span) for span in sample.versions],
            "tokens": sample.response_tokens,
        },
    }
