"""What is away is asked for again, ever more slowly."""

from __future__ import annotations

from actors.later import PAUSES, Later


def test_pauses_grow_until_what_is_done_is_forgotten() -> None:
    now = 0.0
    later: Later[str] = Later(lambda: now)
    for pause in (*PAUSES, PAUSES[-1]):
        assert later.put("a") == pause and later.due() == []
        now += pause
        assert later.due() == ["a"] and later.due() == []
    later.put("b")
    later.forget("b")
    now += 100.0
    assert later.due() == []
    assert later.put("b") == PAUSES[0]
