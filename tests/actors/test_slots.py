"""How many samples are kept in flight: on simulated engines whose cache fills as samples grow, and which take samples back when it is full."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field

import pytest

from actors.slots import Pressure, Slots, follow


@dataclass
class Simulated:
    """An engine with room for ``cache`` tokens and ``most`` samples at once. A tick gives every running sample a token; where the cache is
    full the youngest are taken back and begin again. ``lengths`` draws how long the next answer is."""

    cache: int
    most: int
    mean: float
    rng: random.Random = field(default_factory=lambda: random.Random(0))
    running: list[list[int]] = field(default_factory=list)  # of each: tokens so far, and its length
    waiting: deque[int] = field(default_factory=deque)
    retracted: int = 0
    done: int = 0

    def length(self) -> int:
        return max(2, int(self.rng.expovariate(1 / self.mean)))

    @property
    def used(self) -> int:
        return sum(sample[0] for sample in self.running)

    @property
    def in_flight(self) -> int:
        return len(self.running) + len(self.waiting)

    def tick(self) -> int:
        while self.waiting and len(self.running) < self.most and self.used + len(self.running) < self.cache:
            self.running.append([1, self.waiting.popleft()])
        while self.running and self.used + len(self.running) > self.cache:
            _, length = self.running.pop()
            self.waiting.appendleft(length)
            self.retracted += 1
        for sample in self.running:
            sample[0] += 1
        over = [s for s in self.running if s[0] >= s[1]]
        self.running = [s for s in self.running if s[0] < s[1]]
        self.done += len(over)
        return len(over)


def drive(
    engine: Simulated, ticks: int, slots: Slots, adaptive: bool = True, every: int = 20, prompts: float = 1e9
) -> tuple[Slots, list[int]]:
    """``ticks`` of an actor that keeps ``slots`` in flight, looking every ``every`` ticks; a tick brings at most ``prompts`` samples."""
    limits, finished, due = [], 0, 0.0
    for tick in range(ticks):
        due = min(due + prompts, 1e9)
        while engine.in_flight < slots.limit and due >= 1:
            engine.waiting.append(engine.length())
            due -= 1
        finished += engine.tick()
        if tick % every == 0:
            seen = Pressure(len(engine.waiting), engine.used / engine.cache, engine.retracted, engine.most)
            if adaptive:
                slots = follow(slots, seen, engine.in_flight, finished)
            finished = 0
            limits.append(slots.limit)
    return slots, limits


def best_fixed(cache: int, most: int, mean: float, ticks: int) -> int:
    """Samples that the best fixed number of slots finishes in this time, of those that have at most one in ten taken back."""
    best = 0
    for slots in (32, 40, 48, 64, 160, 180):
        engine = Simulated(cache, most, mean)
        drive(engine, ticks, Slots(slots), adaptive=False)
        if engine.retracted <= 0.1 * engine.done:
            best = max(best, engine.done)
    return best


@pytest.mark.long
@pytest.mark.parametrize(("cache", "most", "mean"), [(1000, 500, 20.0), (20_000, 500, 100.0), (100_000, 64, 50.0)])
def test_it_comes_close_to_the_best_fixed_number_whatever_the_limit_is(cache: int, most: int, mean: float) -> None:
    engine = Simulated(cache, most, mean)
    slots, _ = drive(engine, 4000, Slots(16))
    before, lost = engine.done, engine.retracted
    _, limits = drive(engine, 2000, slots)
    best = best_fixed(cache, most, mean, 2000)
    assert engine.done - before > 0.85 * best, (engine.done - before, best)
    assert engine.retracted - lost < 0.1 * (engine.done - before)
    assert max(limits) < 1.7 * min(limits), "it does not swing"


def test_a_full_cache_is_left_soon_and_rarely_met_again() -> None:
    engine = Simulated(3000, 500, 100.0)
    slots, _ = drive(engine, 2000, Slots(400))
    assert slots.limit < 80, "from far too many it comes down at once"
    lost, done = engine.retracted, engine.done
    drive(engine, 8000, slots)
    assert engine.retracted - lost < 0.2 * (engine.done - done), (
        "a few dozen samples at once, of very different lengths"
    )


def test_it_recovers_when_answers_become_longer_and_shorter_again() -> None:
    engine = Simulated(6000, 500, 60.0)
    slots, limits = drive(engine, 6000, Slots(16))
    short = limits[-1]
    engine.mean = 240.0
    slots, limits = drive(engine, 12_000, slots)
    long = limits[-1]
    assert long < 0.6 * short, "longer answers: fewer of them"
    engine.mean = 60.0
    slots, limits = drive(engine, 12_000, slots)
    assert limits[-1] > 0.75 * short, "shorter again: as many as before, or nearly"


def test_where_prompts_are_missing_the_limit_stays() -> None:
    engine = Simulated(100_000, 500, 50.0)
    slots, limits = drive(engine, 4000, Slots(64), prompts=0.1)
    assert limits[-1] == 64 and slots.met == 0


def test_a_moment_of_waiting_is_no_pressure_but_a_queue_is() -> None:
    slots = Slots(64)
    slots = follow(slots, Pressure(waiting=40), 64, 0)
    assert slots.limit == 64, "a group that has just come"
    slots = follow(slots, Pressure(waiting=1), 64, 0)
    slots = follow(slots, Pressure(waiting=40), 64, 0)
    assert slots.limit == 64
    slots = follow(slots, Pressure(waiting=40), 64, 0)
    assert slots.limit == 27 and slots.met == 64, "what runs, and a little more"
    assert follow(slots, Pressure(waiting=37), 64, 10).limit == 27, "nothing is lowered again before it has drained"


def test_it_never_falls_below_its_floor_nor_stays_where_it_was_when_pressed() -> None:
    slots = Slots(5, floor=4)
    for count in range(1, 9):
        slots = follow(slots, Pressure(retracted=9 * count), slots.limit, 0)
        assert slots.limit >= 4
    assert slots.limit == 4


def test_a_change_waits_for_a_generation_of_samples() -> None:
    slots = follow(Slots(40), Pressure(usage=0.1), 40, 39)
    assert slots.limit == 40
    assert follow(slots, Pressure(usage=0.1), 40, 1).limit == 60
    assert follow(slots, Pressure(usage=0.99), 40, 1).limit == 40, "the cache is nearly full"
    assert follow(slots, Pressure(usage=0.1, most=40), 40, 1).limit == 45, "what runs at most, and a few that wait"
