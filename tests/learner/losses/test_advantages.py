"""Advantages against the formulas, and the traps: equal rewards, groups of one, samples that nobody judged."""

from __future__ import annotations

import statistics
from dataclasses import replace

import numpy as np
import pytest
import torch
from samples import groups_of

from broker.messages import Sampling, Vote
from broker.verdicts import ValueSpan
from learner.losses.advantages import (
    batch_advantages,
    group_advantages,
    leave_one_out_advantages,
    step_advantages,
)
from learner.losses.objectives import Baseline, Std
from learner.planning.rewards import Judged, is_flat, judge, overlong_penalty, trained_rewards
from learner.tables import LearnerTable

REWARDS = [0.2, 1.2, 0.0, 1.0, 1.2]


def by_the_book(rewards: list[float], std: Std, baseline: Baseline, eps: float) -> list[float]:
    if len(rewards) < 2 or len(set(rewards)) == 1:
        return [0.0] * len(rewards)
    scale = {"population": statistics.pstdev, "sample": statistics.stdev}.get(std, lambda _: 1.0)(rewards)
    out = []
    for i, reward in enumerate(rewards):
        others = rewards if baseline == "mean" else rewards[:i] + rewards[i + 1 :]
        out.append((reward - statistics.fmean(others)) / (scale + (eps if std != "none" else 0)))
    return out


@pytest.mark.parametrize("std", ["population", "sample", "none"])
@pytest.mark.parametrize("baseline", ["mean", "leave_one_out"])
@pytest.mark.parametrize("seed", range(4))
def test_many_groups_at_once_against_the_formula(std: Std, baseline: Baseline, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    group = torch.randint(0, 7, (40,), generator=g)  # interleaved, of uneven size, some of them empty
    group[0] = 9  # alone
    rewards = torch.randint(0, 4, (40,), generator=g).double() * 0.3
    rewards[group == 3] = 0.1
    judged = torch.rand(40, generator=g) < 0.8
    rewards[~judged] = float("nan")
    found = batch_advantages(rewards, group, std, 1e-3, baseline, judged)
    assert (found[~judged] == 0).all() and (found[(group == 3) | (group == 9)] == 0).all()
    for number in group.unique().tolist():
        members = (group == number) & judged
        wanted = by_the_book(rewards[members].tolist(), std, baseline, 1e-3)
        assert found[members].tolist() == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize("std", ["population", "sample", "none"])
def test_of_one_group(std: Std) -> None:
    found = group_advantages(torch.tensor(REWARDS, dtype=torch.float64), std, eps=0.0)
    assert found.tolist() == pytest.approx(by_the_book(REWARDS, std, "mean", 0.0))


@pytest.mark.parametrize("std", ["population", "sample", "none"])
def test_equal_rewards_and_a_group_of_one_give_exactly_zero(std: Std) -> None:
    for dtype in (torch.float32, torch.float64):
        assert group_advantages(torch.full((7,), 0.1, dtype=dtype), std).tolist() == [0.0] * 7
        assert group_advantages(torch.tensor([0.7], dtype=dtype), std).tolist() == [0.0]
    assert leave_one_out_advantages(torch.tensor([0.7])).tolist() == [0.0]
    assert batch_advantages(torch.zeros(0), torch.zeros(0, dtype=torch.long), std).tolist() == []


def test_leave_one_out() -> None:
    found = leave_one_out_advantages(torch.tensor(REWARDS, dtype=torch.float64)).tolist()
    assert found == pytest.approx(by_the_book(REWARDS, "none", "leave_one_out", 0.0))


def test_the_batch_std_is_that_of_all_centred_rewards() -> None:
    rewards, groups = torch.tensor([1.0, 0.0, 3.0, 3.0, 5.0]), torch.tensor([0, 0, 1, 1, 1])
    centred = torch.tensor([0.5, -0.5, -2 / 3, -2 / 3, 4 / 3])
    wanted = centred / (centred.square().mean().sqrt() + 1e-6)
    assert torch.allclose(batch_advantages(rewards, groups, "batch"), wanted, atol=1e-6)


@pytest.mark.parametrize("std", ["population", "sample", "none"])
def test_rewards_that_differ_by_rounding_are_equal(std: Std) -> None:
    """.3 and .1 + .2 would else be a difference of one standard deviation."""
    near = torch.tensor([0.3, 0.1 + 0.2, 0.3, 0.3], dtype=torch.float64)
    assert near.unique().numel() == 2 and group_advantages(near, std).tolist() == [0.0] * 4
    assert group_advantages(near + torch.tensor([1e-5, 0, 0, 0]), std).abs().max() > 0


def test_the_overlong_penalty_falls_over_its_buffer() -> None:
    found = [overlong_penalty(length, 100, 20, 0.5) for length in (10, 80, 90, 100, 120)]
    assert found == pytest.approx([0.0, 0.0, -0.25, -0.5, -0.5]) and overlong_penalty(99, 100, 0, 0.5) == 0


def test_a_group_is_flat_after_all_that_makes_its_rewards() -> None:
    """The planner's gate and the trainer's advantages agree: all wrong but of different lengths is not flat under the penalty."""
    (group,) = groups_of(1)
    asked = Sampling(max_new_tokens=40)  # what a sample was asked for bounds it, whatever the run file says now
    group = [s._replace(trajectory=replace(s.trajectory, sampling=asked)) for s in group]
    equal = [Judged(s.trajectory, 0.1 + 0.2 if i else 0.3) for i, s in enumerate(group)]
    plain = LearnerTable()
    penalised = LearnerTable.model_validate(
        {"overlong_buffer": 30, "overlong_penalty": 0.5, "sampling": {"max_new_tokens": 60}}
    )
    assert is_flat(equal, plain) and not is_flat(equal, penalised) and not is_flat(group, plain)
    for table in (plain, penalised):
        advantages = group_advantages(torch.tensor(trained_rewards(equal, table), dtype=torch.float64))
        assert bool((advantages == 0).all()) == is_flat(equal, table)
    lengths = [s.trajectory.response_tokens for s in group]
    assert trained_rewards(group, penalised) == [
        s.reward + overlong_penalty(n, 40, 30, 0.5) for s, n in zip(group, lengths, strict=True)
    ]


def test_values_of_steps_are_normalised_over_the_group_and_summed_from_behind() -> None:
    """GRPO with process supervision: a token gains the normalised values of all steps that end behind it."""
    steps = [[(2, 4, 1.0), (4, 6, 0.0)], [(1, 5, 1.0)], []]
    first, second, third = step_advantages(steps, [7, 5, 3], "population", eps=0.0)
    mean, std = 2 / 3, statistics.pstdev([1.0, 0.0, 1.0])
    good, bad = (1 - mean) / std, (0 - mean) / std
    assert first.tolist() == pytest.approx([good + bad] * 4 + [bad] * 2 + [0.0])
    assert second.tolist() == pytest.approx([good] * 5) and third.tolist() == [0.0] * 3
    plain = step_advantages(steps, [7, 5, 3], "none")
    assert plain[1].tolist() == pytest.approx([1 - mean] * 5)
    assert all(not t.any() for t in step_advantages([[(0, 2, 0.5)], [(0, 1, 0.5)]], [2, 2], "population"))


def test_what_a_rewarder_says_of_steps_and_tokens_comes_with_the_reward() -> None:
    (group,) = groups_of(1)
    sample = group[0].trajectory
    trained = int(sample.mask().sum())
    teacher = np.linspace(-2, -0.1, trained, dtype="<f4")
    votes = {
        "a": Vote(sample.group_id, 0, "a", "value", 1.0, spans=(ValueSpan(4, 6, 0.5),)),
        "t": Vote(sample.group_id, 0, "t", "value", 0.0, logprobs=teacher.tobytes()),
        "s": Vote(sample.group_id, 0, "s", "value", 9.0, shadow=True, spans=(ValueSpan(4, 6, 9.0),)),
    }
    found = judge(sample, {"a": 2.0, "t": 0.0}, votes)
    assert found is not None and found.reward == 2.0 and dict(found.steps) == {"a": (ValueSpan(4, 6, 0.5),)}
    assert found.teacher is not None and found.teacher.tolist() == teacher.tolist()
    assert not is_flat([found, found], LearnerTable()), "equal rewards, but the tokens differ"
    short = Vote(sample.group_id, 0, "t", "value", 0.0, logprobs=teacher[:-1].tobytes())
    assert judge(sample, {"a": 2.0, "t": 0.0}, {**votes, "t": short}) is None
    beyond = Vote(sample.group_id, 0, "a", "value", 1.0, spans=(ValueSpan(4, 1000, 0.5),))
    assert judge(sample, {"a": 2.0}, {"a": beyond}) is None
