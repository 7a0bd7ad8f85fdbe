"""The samples of a report with their votes: all of it text that a model wrote."""

from __future__ import annotations

from collections.abc import Sequence

from monitoring.report.data import Sample
from monitoring.report.svg import esc

TEXT_CHARACTERS = 6_000
QUESTION_CHARACTERS = 2_000
VOTE_CHARACTERS = 500
START_CHARACTERS = 200


def sample_list(samples: Sequence[Sample]) -> str:
    """Early samples, then late ones, each folded behind its first words."""
    if not samples:
        return '<p class="dim">none</p>'
    out = []
    for period in dict.fromkeys(s.period for s in samples):
        out.append(f"<h3>{esc(period.capitalize(), 100)}</h3>" if period else "")
        out += [_sample(s) for s in samples if s.period == period]
    return "".join(out)


def _sample(sample: Sample) -> str:
    votes = "".join(f"<li><b>{esc(n, 100)}</b> {esc(vote, VOTE_CHARACTERS)}</li>" for n, vote in sample.votes.items())
    chip = f'<span class="chip">{esc(sample.chosen, 100)}</span>' if sample.chosen else ""
    start = " ".join(sample.text[:START_CHARACTERS].split())
    return (
        f"<details><summary><b>{round(sample.reward, 3) + 0.0:.3f}</b>{chip}{esc(sample.title, 200)}"
        f'<span class="start">{esc(start)}</span></summary>'
        f'<p class="dim">{esc(sample.facts, 300)}</p>'
        f"<h3>Question</h3><pre>{clipped(sample.question, QUESTION_CHARACTERS)}</pre>"
        f"<h3>Response</h3><pre>{clipped(sample.text, TEXT_CHARACTERS)}</pre>"
        f'<h3>Votes</h3><ul class="votes">{votes}</ul></details>'
    )


def clipped(text: str, limit: int) -> str:
    """The beginning of ``text``, and how much of it is left out."""
    left = len(text) - limit
    return esc(text, limit) + (f' <span class="dim">[{left:,} more characters]</span>' if left > 0 else "")
