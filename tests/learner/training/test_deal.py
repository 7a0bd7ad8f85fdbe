"""Dealing: every chunk once, every rank the same number, nobody with far more than the others; and what it looks like on the way."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import groups_of

from broker.errors import RunFileError
from learner.parallel.place import Place, find_place
from learner.training.deal import PADDING, deal
from learner.training.packing import Sequenced, pack
from learner.training.share import Share, from_bytes, to_bytes

COSTS = st.lists(st.integers(1, 5000), max_size=60)


@settings(deadline=None)
@given(costs=COSTS, world=st.integers(1, 9))
def test_every_chunk_is_dealt_once_and_every_hand_is_as_long(costs: list[int], world: int) -> None:
    hands = deal(costs, world)
    assert len(hands) == world and {len(hand) for hand in hands} == {-(-len(costs) // world)}
    dealt = [number for hand in hands for number in hand if number != PADDING]
    assert sorted(dealt) == list(range(len(costs)))
    for hand in hands:
        own = [number for number in hand if number != PADDING]
        assert hand[: len(own)] == own, "padding comes last"
        assert [costs[n] for n in own] == sorted((costs[n] for n in own), reverse=True), (
            "the costly ones are taken together"
        )


def test_work_is_balanced() -> None:
    rng = np.random.default_rng(0)
    costs = rng.integers(1, 4096, 64).tolist()
    work = [sum(costs[n] for n in hand) for hand in deal(costs, 4)]
    assert max(work) < 1.05 * min(work)


def share() -> Share:
    samples = [judged.trajectory for group in groups_of(3) for judged in group]
    chunks = pack([Sequenced.of(sample, row) for row, sample in enumerate(samples)], 100)
    marks = [torch.arange(int(chunk.mask_T.sum())) % 2 == 0 for chunk in chunks]
    return Share.whole(chunks, {"advantages_N": torch.randn(len(samples))}, marks)


def equal(a: Share, b: Share) -> bool:
    same = len(a.chunks) == len(b.chunks) and a.places == b.places and a.total == b.total
    same &= all(torch.equal(a.batch[name], b.batch[name]) for name in {*a.batch, *b.batch})
    same &= all(map(torch.equal, a.marks, b.marks))
    for one, two in zip(a.chunks, b.chunks, strict=True):
        for field in fields(one):
            x, y = getattr(one, field.name), getattr(two, field.name)
            same &= x.dtype == y.dtype and torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y
    return bool(same)


def test_a_share_comes_out_as_it_went_in() -> None:
    for part in share().dealt(3):
        assert equal(from_bytes(to_bytes(part)), part)


def test_the_places_of_all_shares_are_the_whole_batch() -> None:
    whole = share()
    for world in (1, 2, 5, 40):
        shares = whole.dealt(world)
        taken = torch.zeros(whole.total, dtype=torch.long)
        for part in shares:
            for chunk, place, mark in zip(part.chunks, part.places, part.marks, strict=True):
                assert int(chunk.mask_T.sum()) == place.stop - place.start == len(mark)
                taken[place] += 1
        assert (taken == 1).all() and {part.total for part in shares} == {whole.total}


def test_torchrun_says_which_rank_this_is() -> None:
    environment = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}
    assert find_place(environment) == Place(3, 4, 1, "10.0.0.1", 29500, False)
    assert find_place({**environment, "TORCHELASTIC_USE_AGENT_STORE": "True"}).served  # type: ignore[union-attr]
    assert find_place({}) is None and find_place({"WORLD_SIZE": "1", "RANK": "0"}) is None
    with pytest.raises(RunFileError, match="MASTER_PORT"):
        find_place({name: value for name, value in environment.items() if name != "MASTER_PORT"})


@pytest.mark.parametrize("world", [1, 2, 3])
def test_every_minibatch_is_dealt_for_itself(world: int) -> None:
    """The ranks' updates match: all have equally many chunks of each minibatch, in the same order."""
    whole = share()
    parts = [n % 3 for n in range(len(whole.chunks))]
    split = Share.whole(whole.chunks, whole.batch, whole.marks, parts)
    hands = [from_bytes(to_bytes(hand)) for hand in split.dealt(world)]
    assert len({hand.parts for hand in hands}) == 1 and list(hands[0].parts) == sorted(hands[0].parts)
    for part in range(3):
        wanted = sorted(place.start for place, own in zip(split.places, split.parts, strict=True) if own == part)
        found = sorted(
            place.start
            for hand in hands
            for place, own in zip(hand.places, hand.parts, strict=True)
            if own == part and place.stop > place.start
        )
        assert found == wanted
    assert all(hand.parts == (0,) * len(hand.chunks) for hand in whole.dealt(world)), "one minibatch if nothing is said"


def test_values_of_steps_and_a_teacher_travel_with_their_chunk() -> None:
    (group,) = groups_of(1)
    items = [
        Sequenced.of(
            s.trajectory,
            row,
            np.arange(len(s.trajectory.tokens), dtype=np.float32) if row % 2 else None,
            s.trajectory.logprobs[s.trajectory.mask()] - 1 if row == 1 else None,
        )
        for row, s in enumerate(group)
    ]
    (chunk,) = from_bytes(to_bytes(Share.whole(pack(items, 4096)))).chunks
    assert chunk.value_T is not None and chunk.teacher_T is not None
    row = torch.tensor(chunk.rows_N)[chunk.sequence_T[chunk.mask_T]]
    value, teacher, mu = (x[chunk.mask_T] for x in (chunk.value_T, chunk.teacher_T, chunk.behavior_T))
    odd = row % 2 == 1
    assert torch.equal(value[odd], chunk.positions_T[chunk.mask_T][odd] + 1.0) and not value[~odd].any()
    assert torch.equal(teacher[row == 1], mu[row == 1] - 1) and teacher[row != 1].isnan().all()
