"""Packing: every sequence in one chunk, none too full, and no prediction across the border of two sequences."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from learner.training.packing import SPAN, Sequenced, assign, pack, packing_efficiency


def sequences(lengths: list[int]) -> list[Sequenced]:
    rng = np.random.default_rng(3)
    out = []
    for row, length in enumerate(lengths):
        tokens = rng.integers(0, 1000, length).astype(np.int32)
        logprobs = -rng.random(length).astype(np.float32)
        out.append(Sequenced(tokens, rng.random(length) < 0.6, logprobs, np.full(length, row, np.int32), row))
    return out


@given(st.lists(st.integers(1, 120), min_size=1, max_size=60))
@settings(deadline=None)
def test_every_sequence_is_in_one_chunk_and_none_is_too_full(lengths: list[int]) -> None:
    bins = assign(lengths, 100)
    assert sorted(i for members in bins for i in members) == list(range(len(lengths)))
    assert all(len(members) == 1 or sum(lengths[i] for i in members) <= 100 for members in bins)
    assert bins == assign(lengths, 100)
    sums = sorted(sum(lengths[i] for i in members) for members in bins)
    assert len(sums) < 2 or sums[0] + sums[1] > 100, "two chunks that fit into one would be one"


@given(st.lists(st.integers(1, 30), min_size=1, max_size=12))
@settings(deadline=None, max_examples=40)
def test_what_a_position_predicts_is_the_next_token_of_its_own_sequence(lengths: list[int]) -> None:
    items = sequences(lengths)
    trained = 0
    for chunk in pack(items, 40):
        at = 0
        for place, (row, length) in enumerate(zip(chunk.rows_N, chunk.lengths_N, strict=True)):
            item, part = items[row], slice(at, at + length)
            assert chunk.tokens_T[part].tolist() == item.tokens.tolist()
            assert chunk.positions_T[part].tolist() == list(range(length))
            assert chunk.sequence_T[part].tolist() == [place] * length
            inner = slice(at, at + length - 1)
            assert chunk.target_T[inner].tolist() == item.tokens[1:].tolist()
            assert chunk.mask_T[part].tolist() == [*item.mask[1:].tolist(), False], "the last token predicts nothing"
            assert chunk.behavior_T[inner].tolist() == item.logprobs[1:].tolist()
            assert chunk.version_T[inner].tolist() == item.versions[1:].tolist()
            at += length
        assert at == len(chunk.tokens_T)
        trained += int(chunk.mask_T.sum())
    assert trained == sum(int(item.mask[1:].sum()) for item in items)


def test_efficiency_counts_the_room_that_is_used() -> None:
    assert packing_efficiency(pack(sequences([50, 50, 30, 70]), 100), 100) == 1.0
    assert packing_efficiency(pack(sequences([150, 50]), 100), 100) == 200 / 250
    assert packing_efficiency([], 100) == 1.0


def test_samples_of_one_prompt_share_it_within_a_chunk() -> None:
    prompt = np.arange(100, 106, dtype=np.int32)
    items = []
    for row, response in enumerate(([1, 2, 3, 4], [5, 6], [7])):
        tokens = np.concatenate([prompt, np.array(response, np.int32)])
        mask = np.arange(len(tokens)) >= len(prompt)
        items.append(Sequenced(tokens, mask, np.zeros(len(tokens), np.float32), np.zeros(len(tokens), np.int32), row))
    (chunk,) = pack(items, 100)
    assert chunk.tokens_T.tolist() == [*prompt, 1, 2, 3, 4, 105, 5, 6, 105, 7], (
        "the last token of the prompt predicts: each has its own"
    )
    assert chunk.positions_T.tolist() == [*range(10), 5, 6, 7, 5, 6]
    assert (chunk.lengths_N, chunk.prefixes_N) == ((10, 3, 2), ((0, 0), (0, 5), (0, 5)))
    assert chunk.target_T[chunk.mask_T].tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert chunk.sequence_T.tolist() == [0] * 10 + [1] * 3 + [2] * 2
    assert packing_efficiency([chunk], 100) == 15 / 100


families = st.lists(st.tuples(st.integers(0, 90), st.lists(st.integers(1, 60), min_size=1, max_size=8)), min_size=1, max_size=12)  # fmt: skip


def unpacked(drawn: list[tuple[int, list[int]]]) -> tuple[list[int], list[tuple[int, int]]]:
    """Lengths of whole sequences, and the prompt of each."""
    prompts = [(number, shared) for number, (shared, answers) in enumerate(drawn) for _ in answers]
    return [shared + own for shared, answers in drawn for own in answers], prompts


def held(members: list[int], lengths: list[int], prompts: list[tuple[int, int]]) -> int:
    """Tokens of a chunk, each of its prompts once."""
    return sum(lengths[i] - prompts[i][1] for i in members) + sum(dict(prompts[i] for i in members).values())


@given(families)
@settings(deadline=None)
def test_chunks_with_shared_prompts_hold_everything_and_are_not_too_full(drawn: list[tuple[int, list[int]]]) -> None:
    lengths, prompts = unpacked(drawn)
    bins = assign(lengths, 100, prompts)
    assert sorted(i for members in bins for i in members) == list(range(len(lengths)))
    for members in bins:
        assert len(members) == 1 or held(members, lengths, prompts) <= 100
        assert len(members) == 1 or sum(lengths[i] for i in members) <= SPAN * 100
    assert bins == assign(lengths, 100, prompts)


def test_the_samples_of_a_prompt_stay_together_in_a_large_step() -> None:
    """32 groups of 16, prompts as long as answers: packed by length alone, a chunk has hardly two samples of one prompt."""
    rng = np.random.default_rng(5)
    drawn = [(int(rng.integers(300, 700)), rng.integers(100, 900, 16).tolist()) for _ in range(32)]
    lengths, prompts = unpacked(drawn)
    least = sum(shared + sum(answers) for shared, answers in drawn)
    bins = assign(lengths, 4096, prompts)
    computed = sum(held(members, lengths, prompts) for members in bins)
    assert computed < 1.15 * least < 0.65 * sum(lengths)
    assert computed / (4096 * len(bins)) > 0.97
    by_length = sum(held(members, lengths, prompts) for members in assign(lengths, 4096))
    assert by_length > 0.9 * sum(lengths)
