"""Stale data and long answers: the default learns as from fresh ones; the plain weight of a sequence loses its gradient."""

from __future__ import annotations

from benchmarks.staleness.long import learned


def test_the_default_learns_from_stale_long_answers_as_from_fresh_ones() -> None:
    fresh = learned("async", 512, 0)
    assert fresh > 0.8
    assert learned("async", 512, 8) > 0.97 * fresh
    assert learned("tis_sequence", 512, 8) < 0.85 * fresh, "this is what it is measured against"
