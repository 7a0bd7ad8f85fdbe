"""A sample as other frameworks see it: a row of a data set, and messages."""

from __future__ import annotations

from typing import Any

from broker.messages import Trajectory


def row(sample: Trajectory, answer: str) -> dict[str, Any]:
    """The columns of the sample's row: its metadata, the reference under the name ``answer``, and its kind as ``task``."""
    named = {answer: sample.answer} if sample.answer is not None else {}
    return {"task": sample.kind, **sample.metadata, **named}


def prompt(sample: Trajectory) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in sample.messages]


def completion(sample: Trajectory) -> list[dict[str, str]]:
    """All that was said after the prompt: of an episode every turn, else the one response."""
    said = sample.turns or (("assistant", sample.text),)
    return [{"role": role, "content": content} for role, content in said]
