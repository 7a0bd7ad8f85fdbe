"""Records: round trips, validation at birth, and a decoder that any bytes leave standing."""

from __future__ import annotations

from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.errors import DecodeError, MessageError
from broker.messages import (
    SCHEMA,
    ChatMessage,
    DeadLetter,
    Dropped,
    Evaluation,
    GroupRef,
    Manifest,
    Message,
    PlannerState,
    PolicyVersion,
    Position,
    Prompt,
    SampleRef,
    Sampling,
    Segment,
    StepResult,
    Trajectory,
    VersionSpan,
    Vote,
    VoteRef,
    decode,
    encode,
)

words = st.text(max_size=20)
names = st.text(st.characters(exclude_characters="#", exclude_categories=("Cs",)), min_size=1, max_size=20)
finite = st.floats(allow_nan=False, allow_infinity=False)
counts = st.integers(0, 2**40)
offsets = st.dictionaries(st.integers(0, 64), counts, max_size=4)
json = st.recursive(st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | finite | words, lambda x: st.lists(x, max_size=3) | st.dictionaries(words, x, max_size=3), max_leaves=8)  # fmt: skip
maps = st.dictionaries(words, json, max_size=3)
weights = st.dictionaries(names, finite, max_size=3)
positions = st.builds(Position, st.integers(0, 64), counts)
turns = st.lists(st.builds(ChatMessage, words, words), min_size=1, max_size=3).map(tuple)
samplings = st.builds(
    Sampling, st.floats(0, 5), st.floats(0.01, 1), st.integers(1, 9999), st.lists(names, max_size=2).map(tuple)
)
prompts = st.builds(Prompt, names, turns, st.integers(1, 64), st.none() | words, words, maps, weights, samplings, st.sampled_from(["train", "eval"]), words, counts, counts, counts, finite)  # fmt: skip
votes = st.builds(Vote, names, counts, names, st.just("value"), finite, words, finite, st.integers(0, 9), finite) | st.builds(Vote, names, counts, names, st.sampled_from(["abstain", "error"]))  # fmt: skip
states = st.builds(PlannerState, st.dictionaries(words, counts, max_size=2), st.lists(words, max_size=3).map(tuple), offsets, offsets, offsets, offsets, offsets)  # fmt: skip
samples = st.builds(SampleRef, counts, positions, st.lists(st.builds(VoteRef, names, positions), max_size=2).map(tuple))
groups = st.lists(
    st.builds(GroupRef, names, positions, st.lists(samples, max_size=2).map(tuple)), min_size=1, max_size=2
).map(tuple)
drops = st.lists(st.builds(Dropped, names, words, counts), max_size=2).map(tuple)
manifests = st.builds(Manifest, counts, counts, st.just("step"), groups, drops, st.just(""), states, weights, finite) | st.builds(Manifest, counts, counts, st.just("weights"), st.just(()), drops, names, states)  # fmt: skip
pairs = st.tuples(finite, finite)
evaluations = st.builds(Evaluation, names, counts, counts, counts, counts, finite, pairs, finite, pairs, st.tuples(counts, counts), finite, st.lists(names, max_size=2).map(tuple), drops, weights, finite)  # fmt: skip
others = st.builds(StepResult, counts, counts, counts, weights, weights, finite) | st.builds(PolicyVersion, counts, words, words, words, words, finite) | st.builds(DeadLetter, words, counts, counts, st.binary(max_size=9), st.binary(max_size=9), words, words, words, counts, finite)  # fmt: skip


@st.composite
def trajectories(draw: Any) -> Trajectory:
    prompt, response = draw(st.integers(1, 20)), draw(st.integers(1, 20))
    count = prompt + response
    tokens = np.array(draw(st.lists(st.integers(0, 2**31 - 1), min_size=count, max_size=count)), np.int32)
    logprobs = np.array(
        [0.0] * prompt + draw(st.lists(st.floats(-1000, 0, width=32), min_size=response, max_size=response)), np.float32
    )
    later = draw(st.booleans()) and response > 1
    versions = (VersionSpan(draw(counts), prompt), *((VersionSpan(draw(counts), count - 1),) if later else ()))
    size = draw(st.integers(1, 8))
    return Trajectory(
        draw(names), draw(st.integers(0, size - 1)), size, draw(turns), draw(st.none() | words), draw(words), draw(maps), draw(weights), "train",
        draw(words), tokens, logprobs, (Segment("prompt", 0, prompt, False), Segment("assistant", prompt, count, True)), versions,
        draw(st.sampled_from(["stop", "length", "abort"])), draw(samplings), draw(words), draw(words), draw(finite), draw(finite),
    )  # fmt: skip


messages = prompts | votes | manifests | evaluations | others | trajectories()


@pytest.mark.long
@given(messages)
@settings(max_examples=200, deadline=None)
def test_what_is_encoded_decodes_to_the_same(message: Message) -> None:
    data = encode(message)
    assert decode(data) == message
    assert encode(decode(data)) == data


def stands(data: bytes) -> None:
    try:
        decode(data)
    except DecodeError as error:
        assert error.data == data
        assert error.reason


@given(st.binary(max_size=300))
@settings(max_examples=300, deadline=None)
def test_any_bytes_give_a_message_or_a_decode_error_that_carries_them(data: bytes) -> None:
    stands(data)


@pytest.mark.long
@given(messages, st.data())
@settings(max_examples=300, deadline=None)
def test_damaged_records_do_too(message: Message, data: st.DataObject) -> None:
    raw = bytearray(encode(message))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    stands(bytes(raw[: data.draw(st.integers(0, len(raw)))]))


@pytest.mark.long
@given(
    st.sampled_from(["prompt", "trajectory", "vote", "manifest", "result", "evaluation", "policy", "deadletter"]),
    st.data(),
)
@settings(max_examples=300, deadline=None)
def test_maps_with_wrong_fields_do_too(kind: str, data: st.DataObject) -> None:
    example: Message = data.draw(messages)
    wire = {**example.pack(), "t": kind, "v": 1}
    for key in data.draw(st.lists(st.sampled_from(sorted(wire)), max_size=3)):
        wire[key] = data.draw(json | st.binary(max_size=5))
    stands(msgpack.packb(wire))


def sample(**changes: Any) -> Trajectory:
    fields: dict[str, Any] = {
        "group_id": "sums-1@0", "index": 0, "group_size": 2, "messages": (ChatMessage("user", "hi"),), "answer": None, "kind": "",
        "metadata": {}, "rewards": {}, "purpose": "train", "text": "x", "tokens": np.array([1, 2, 3], np.int32),
        "logprobs": np.array([0, -1, -2], np.float32), "segments": (Segment("prompt", 0, 1, False), Segment("assistant", 1, 3, True)),
        "versions": (VersionSpan(4, 1), VersionSpan(6, 2)), "finish_reason": "stop", "sampling": Sampling(),
    }  # fmt: skip
    return Trajectory(**{**fields, **changes})


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"tokens": np.array([1, -2, 3], np.int32)}, "-2"),
        ({"tokens": np.array([], np.int32)}, "tokens"),
        ({"logprobs": np.array([0, np.nan, -1], np.float32)}, "logprobs"),
        ({"logprobs": np.array([0, -np.inf, -1], np.float32)}, "logprobs"),
        ({"logprobs": np.array([0, 2, -1], np.float32)}, "logprobs"),
        ({"logprobs": np.array([0, -1], np.float32)}, "logprobs"),
        ({"index": 2}, "index"),
        ({"segments": (Segment("assistant", 0, 2, True),)}, "segments"),
        ({"segments": (Segment("assistant", 1, 3, True),)}, "segments"),
        ({"versions": ()}, "versions"),
        ({"versions": (VersionSpan(1, 2),)}, "versions"),
        ({"finish_reason": "tired"}, "tired"),
    ],
)
def test_a_wrong_trajectory_is_refused_by_name(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(MessageError, match=named):
        sample(**changes)


def test_a_trajectory_tells_its_tokens_and_versions() -> None:
    it = sample()
    assert it.id == "sums-1@0#0" and it.response_tokens == 2
    assert (it.oldest_version, it.newest_version) == (4, 6)
    assert it.mask().tolist() == [False, True, True]
    assert it.versions_per_token().tolist() == [-1, 4, 6]


@pytest.mark.parametrize("value", [float("inf"), float("nan"), None])
def test_a_vote_of_no_number_is_refused(value: float | None) -> None:
    with pytest.raises(MessageError, match="value"):
        Vote("g", 0, "accuracy", "value", value)


def test_a_newer_schema_is_refused_and_unknown_fields_are_not() -> None:
    wire = {**Vote("g", 0, "r", "abstain").pack(), "t": "vote", "v": SCHEMA + 1}
    with pytest.raises(DecodeError, match="schema"):
        decode(msgpack.packb(wire))
    assert decode(msgpack.packb({**wire, "v": 1, "more": 3})) == Vote("g", 0, "r", "abstain")
