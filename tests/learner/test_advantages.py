"""Advantages against the formulas, and the traps: equal rewards, groups of one."""

from __future__ import annotations

import statistics

import pytest
import torch

from learner.advantages import group_advantages, leave_one_out_advantages

REWARDS = [0.2, 1.2, 0.0, 1.0, 1.2]


@pytest.mark.parametrize(
    ("std", "deviation"),
    [("population", statistics.pstdev(REWARDS)), ("sample", statistics.stdev(REWARDS)), ("none", 1.0)],
)
def test_against_the_formula(std: str, deviation: float) -> None:
    found = group_advantages(torch.tensor(REWARDS, dtype=torch.float64), std, eps=0.0)  # type: ignore[arg-type]
    mean = statistics.fmean(REWARDS)
    assert found.tolist() == pytest.approx([(r - mean) / deviation for r in REWARDS])


def test_equal_rewards_and_a_group_of_one_give_exactly_zero() -> None:
    for std in ("population", "sample", "none"):
        assert group_advantages(torch.tensor([0.1, 0.1, 0.1]), std).tolist() == [0, 0, 0]  # type: ignore[arg-type]
        assert group_advantages(torch.tensor([0.7]), std).tolist() == [0]  # type: ignore[arg-type]
    assert leave_one_out_advantages(torch.tensor([0.7])).tolist() == [0]


def test_leave_one_out() -> None:
    found = leave_one_out_advantages(torch.tensor(REWARDS, dtype=torch.float64)).tolist()
    assert found == pytest.approx([r - statistics.fmean(REWARDS[:i] + REWARDS[i + 1 :]) for i, r in enumerate(REWARDS)])
