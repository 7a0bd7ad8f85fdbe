"""Deals out the chunks of a step, so that every rank gets the same number of chunks and about the same work."""

from __future__ import annotations

from collections.abc import Sequence

PADDING = -1
"""Stands for a chunk without any trained token: the ranks' collectives must match, chunk by chunk."""


def deal(costs: Sequence[int], world: int) -> list[list[int]]:
    """For each rank the numbers of its chunks, the costly ones first: each to the rank with the least work that still has room.

    All lists are equally long; what is missing is padding, at the end.
    """
    each = -(-len(costs) // world)
    hands: list[list[int]] = [[] for _ in range(world)]
    work = [0] * world
    for number in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        rank = min((r for r in range(world) if len(hands[r]) < each), key=lambda r: (work[r], r))
        hands[rank].append(number)
        work[rank] += costs[number]
    return [hand + [PADDING] * (each - len(hand)) for hand in hands]
