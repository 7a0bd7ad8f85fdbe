"""The samples of a report with their votes: all of it text that a model wrote."""

from __future__ import annotations

from collections.abc import Sequence

from monitoring.report.data import Sample
from monitoring.report.svg import esc

TEXT_CHARACTERS = 6_000
QUESTION_CHARACTERS = 2_000
VOTE_CHARACTERS = 500
TURN_CHARACTERS = 2_000
TURNS = 12  # at either end of an episode
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
        f"{_episode(sample) if sample.turns else _response(sample)}"
        f'<h3>Votes</h3><ul class="votes">{votes}</ul></details>'
    )


def _response(sample: Sample) -> str:
    return f"<h3>Response</h3><pre>{clipped(sample.text, TEXT_CHARACTERS)}</pre>"


def _episode(sample: Sample) -> str:
    """Turn by turn; of a very long episode the first and the last ones."""
    turns, left = sample.turns, len(sample.turns) - 2 * TURNS
    told = [_turn(*turn) for turn in (turns if left <= 0 else turns[:TURNS])]
    if left > 0:
        told += [f'<p class="dim">[{left:,} more turns]</p>', *(_turn(*turn) for turn in turns[-TURNS:])]
    return f"<h3>Episode</h3>{''.join(told)}"


def _turn(role: str, text: str, facts: str) -> str:
    said = f"<pre>{clipped(text, TURN_CHARACTERS)}</pre>" if text else ""
    return f'<p><b>{esc(role, 40)}</b> <span class="dim">{esc(facts, 300)}</span></p>{said}'


def clipped(text: str, limit: int) -> str:
    """The beginning of ``text``, and how much of it is left out."""
    left = len(text) - limit
    return esc(text, limit) + (f' <span class="dim">[{left:,} more characters]</span>' if left > 0 else "")
