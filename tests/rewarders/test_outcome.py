"""What an environment says of an episode becomes a vote."""

from __future__ import annotations

from dataclasses import replace

from rewarders.outcome import Outcome
from tests.samples import groups_of


def test_the_outcome_is_the_vote_and_silence_abstains_but_for_an_episode_that_ran_out() -> None:
    sample = groups_of(1)[0][0].trajectory
    said = Outcome()(replace(sample, outcome=0.5))
    assert said is not None and said.value == 0.5
    assert Outcome()(sample) is None, "it ended by itself, and nothing was said of it"
    for reason in ("turns", "length"):
        cut = Outcome()(replace(sample, finish_reason=reason))
        assert cut is not None and cut.value == 0.0 and reason in cut.why
        kept = Outcome(unfinished=-1.0)(replace(sample, finish_reason=reason))
        assert kept is not None and kept.value == -1.0
        told = Outcome(unfinished=-1.0)(replace(sample, finish_reason=reason, outcome=0.25))
        assert told is not None and told.value == 0.25
