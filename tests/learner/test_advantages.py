"""Advantages against the formulas, and the traps: equal rewards, groups of one, samples that nobody judged."""

from __future__ import annotations

import statistics

import pytest
import torch

from learner.losses.advantages import (
    Baseline,
    Std,
    batch_advantages,
    group_advantages,
    leave_one_out_advantages,
    overlong_penalty,
)

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


def test_the_overlong_penalty_falls_over_its_buffer() -> None:
    lengths = torch.tensor([10.0, 80.0, 90.0, 100.0, 120.0])
    assert overlong_penalty(lengths, 100, 20, 0.5).tolist() == pytest.approx([0.0, 0.0, -0.25, -0.5, -0.5])
