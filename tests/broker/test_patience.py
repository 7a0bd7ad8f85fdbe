"""Waiting with a word now and then."""

from __future__ import annotations

from broker.patience import Seldom


def test_a_word_comes_at_most_once_in_its_time() -> None:
    soon, later, always = Seldom(3600.0), Seldom(3600.0, at_once=False), Seldom(0.0)
    assert [soon() for _ in range(3)] == [True, False, False]
    assert [later() for _ in range(3)] == [False, False, False]
    assert [always() for _ in range(3)] == [True, True, True]
