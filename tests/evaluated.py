"""Small runs whose log has evaluations, each question with samples, votes and marks as a learner would write them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from broker.messages import (
    ChatMessage,
    Dropped,
    Evaluation,
    Manifest,
    Message,
    PlannerState,
    Prompt,
    Sampling,
    Segment,
    StepResult,
    Trajectory,
    VersionSpan,
    Vote,
    encode,
)
from broker.run import Run
from learner.data.source import PromptRow
from learner.planning.feed import content_of
from learner.planning.groups import Group
from learner.planning.scores import score
from learner.tables import Benchmark

STAGES = '[[stage]]\nkind = "sft"\nname = "cold"\n[[stage]]\nkind = "rl"\nname = "zero"\n[[stage]]\nkind = "evaluate"\nname = "end"\n'


class Evaluated:
    """A run in ``directory`` of three stages (``cold``, ``zero``, ``end``); what is written is there at once."""

    def __init__(self, directory: Path, stages: str = STAGES) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "run.toml").write_text(
            '[run]\nname = "small"\nmodel = "m"\n[run.rewards]\naccuracy = 1.0\n[broker]\npartitions = 2\n[data]\nheldout = "x"\n'
            + stages
        )
        self.run = Run.open(directory / "run.toml", [], directory)
        self.log = self.run.open_log()
        self._out = self.log.producer()

    def write(self, topic: str, key: str, message: Message) -> Any:
        self._out.send(getattr(self.run.topics, topic), key.encode(), encode(message))
        return self._out.flush()[-1]

    def evaluation(
        self,
        name: str,
        step: int,
        marks: Sequence[str],
        stage: int = 1,
        data: str = "heldout",
        questions: Sequence[str] = (),
        says: str = "it is",
        tokens: int = 3,
        lost: Sequence[Dropped] = (),
        metadata: Mapping[str, Any] | None = None,
    ) -> Evaluation:
        """One of ``marks`` a question: ``1`` right, ``0`` wrong, ``-`` an error of the judge, ``~`` cut off at the length limit."""
        groups = []
        for row, signs in enumerate(marks):
            text = questions[row] if questions else f"{data} question {row}"
            asked = PromptRow((ChatMessage("user", text),), str(row))
            group_id = f"{data}-{row}@{name}"
            prompt = Prompt(
                group_id, asked.messages, len(signs), answer=asked.answer, rewards={"accuracy": 1.0}, purpose="eval", collection=name,
                content=content_of(asked), metadata=metadata or {}, number=row,
            )  # fmt: skip
            group = Group(prompt, self.write("prompts", group_id, prompt), time.time())
            for index, sign in enumerate(signs):
                self._sample(group, index, sign, f"{says} {sign} to {text}", step, tokens)
            groups.append(group)
        made = score(
            Benchmark(data=data, k=len(marks[0]) if marks else 1), name, step, stage, groups, lost, time.time()
        )
        self.write("steps", f"evaluation/{name}", made)
        return made

    def _sample(self, group: Group, index: int, sign: str, text: str, version: int, tokens: int) -> None:
        prompt, n = group.prompt, 2 + tokens
        sample = Trajectory(
            group.id, index, prompt.group_size, prompt.messages, prompt.answer, "", prompt.metadata, prompt.rewards, "eval", text,
            np.arange(n, dtype=np.int32), np.zeros(n, np.float32),
            (Segment("prompt", 0, 2, False), Segment("assistant", 2, n, True)), (VersionSpan(version, 2),),
            "length" if sign == "~" else "stop", Sampling(max_new_tokens=tokens), collection=prompt.collection,
        )  # fmt: skip
        value = {"1": 1.0, "0": 0.0, "~": 1.0}.get(sign)
        vote = Vote(group.id, index, "accuracy", "error" if value is None else "value", value, "why", answer=sign)
        group.add_sample(sample, self.write("trajectories", group.id, sample))
        group.add_vote(vote, self.write("rewards", group.id, vote))

    def step(self, step: int, stage: int = 1, seconds: float = 0.5, **metrics: float) -> None:
        """A result of the stage; of ``zero`` with the manifest before it."""
        phases = {"optimizer": seconds}
        self.write("steps", f"result/{step}", StepResult(step, stage, step, metrics, phases, float(step)))

    def manifest(self, step: int, stage: int, kind: str, **changes: Any) -> None:
        self.write(
            "steps", str(step), Manifest(step, stage, kind, state=PlannerState(), created=float(step), **changes)
        )

    def close(self) -> None:
        self._out.close()
        self.log.close()
