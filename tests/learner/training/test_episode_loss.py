"""The loss of an episode: packed with others that share its prompt it is what its turns give, each computed apart in its own context."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from broker.messages import ChatMessage, Reply, Sampling, Segment, Trajectory, VersionSpan
from learner.losses.objectives import OBJECTIVES
from learner.losses.tokens import TokenBatch, token_losses
from learner.model.load import load_model
from learner.planning.groups import Judged
from learner.planning.rewards import trained_rewards
from learner.tables import LearnerTable
from learner.training.optimizer import build_optimizer
from learner.training.prepared import Prepared, prepare
from learner.training.step import Step
from learner.training.trainer import TrainState


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Any:
    torch.set_num_threads(1)
    return load_model(str(tiny_model))


def episode(rng: np.random.Generator, group: int, index: int, prompt: list[int], longest: int = 9) -> Trajectory:
    """Up to four replies, with what is said to them in between; the last one is a reply."""
    tokens, segments, turns, replies = list(prompt), [Segment("prompt", 0, len(prompt), False)], [], []
    for number in range(int(rng.integers(1, 5))):
        for role in ("user", "assistant") if number else ("assistant",):
            start = len(tokens)
            tokens += rng.integers(0, 300, int(rng.integers(1, longest))).tolist()
            segments.append(Segment(role, start, len(tokens), role == "assistant"))
            turns.append(ChatMessage(role, "?"))
        replies.append(Reply(len(turns) - 1, 0.0, 0.0))
    logprobs = np.zeros(len(tokens), np.float32)
    for segment in segments:
        if segment.trainable:
            logprobs[segment.start : segment.end] = -rng.random(segment.end - segment.start) * 6
    return Trajectory(
        f"d-{group}@0", index, 4, (ChatMessage("user", "?"),), None, "", {}, {"r": 1.0}, "train", "", np.array(tokens, np.int32),
        logprobs, tuple(segments), (VersionSpan(0, len(prompt)),), "stop", Sampling(), environment="game", turns=tuple(turns),
        replies=tuple(replies),
    )  # fmt: skip


def episodes(groups: int, seed: int = 0) -> list[list[Judged]]:
    rng = np.random.default_rng(seed)
    out = []
    for group in range(groups):
        prompt = rng.integers(0, 300, 6).tolist()
        out.append([Judged(episode(rng, group, i, prompt), float(rng.random())) for i in range(4)])
    return out


def apart(model: Any, sample: Trajectory) -> torch.Tensor:
    """Log-probabilities of the trained tokens: a pass for each reply over what was said up to its end, and nothing else."""
    found = []
    for segment in sample.segments:
        if segment.trainable:
            ids = torch.from_numpy(sample.tokens[: segment.end].astype(np.int64))[None]
            logprobs = torch.log_softmax(model(ids, use_cache=False).logits[0, :-1].float(), -1)
            found.append(logprobs.gather(1, ids[0, 1:, None])[segment.start - 1 :, 0])
    return torch.cat(found)


def loss_apart(model: Any, prepared: Prepared, objective: Any) -> torch.Tensor:
    total = torch.zeros(())
    for row, judged in enumerate(prepared.samples):
        sample = judged.trajectory
        logprobs = apart(model, sample)
        advantages = prepared.batch.advantages_N[row].expand_as(logprobs)
        behavior = torch.from_numpy(sample.logprobs[sample.mask()])
        every, one = torch.ones_like(logprobs, dtype=torch.bool), torch.zeros_like(logprobs, dtype=torch.long)
        made = token_losses(objective, TokenBatch(logprobs, behavior, advantages, every, one))
        total = total + (made.loss * prepared.batch.weights_N[row]).sum()
    return total


@pytest.mark.long
@pytest.mark.parametrize("name", ["grpo", "dapo", "topr", "async"])
def test_the_packed_loss_of_episodes_is_that_of_their_turns_computed_apart(model: Any, name: str) -> None:
    config = LearnerTable.model_validate({"pack_tokens": 96, "objective": name})
    prepared = prepare(episodes(3), OBJECTIVES[name], config)
    assert any(sum(s.trainable for s in j.trajectory.segments) > 2 for j in prepared.samples)
    assert len(prepared.chunks) > 1 and any(cut for chunk in prepared.chunks for _, cut in chunk.prefixes_N), "shared"
    packed, plain = copy.deepcopy(model), copy.deepcopy(model)
    plain.set_attn_implementation("eager")
    step = Step(
        TrainState.begin(packed, build_optimizer(packed, config.optimizer), 0, config), prepared.share(), config
    )
    total = 0.0
    for minibatch in step.minibatches(step.pieces()):
        for piece, kept in step.rounds(minibatch):
            loss = step.total(piece, step.token_losses(piece, kept, step.score(piece)))
            loss.backward()
            total += float(loss.detach())
    loss = loss_apart(plain, prepared, OBJECTIVES[name])
    loss.backward()
    assert total == pytest.approx(loss.item(), abs=1e-5)
    for mine, theirs in zip(packed.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(mine.grad, theirs.grad, atol=1e-5), "nor is the gradient another"


def test_what_was_said_to_the_model_gives_no_gradient(model: Any) -> None:
    """Other behaviour log-probabilities there, and nothing changes; the token before it predicts nothing."""
    config = LearnerTable.model_validate({"objective": "grpo"})
    prepared = prepare(episodes(2), OBJECTIVES["grpo"], config)
    for chunk in prepared.chunks:
        predicted = chunk.target_T[chunk.mask_T].tolist()
        trained = [j.trajectory.tokens[j.trajectory.mask()].tolist() for j in prepared.samples]
        rows = [chunk.rows_N[int(i)] for i in chunk.sequence_T[chunk.mask_T]]
        for row in set(rows):
            assert [t for t, of in zip(predicted, rows, strict=True) if of == row] == trained[row]


def test_a_penalty_on_long_answers_is_of_the_longest_reply_not_of_the_episode() -> None:
    rng = np.random.default_rng(4)
    sample = next(e for i in range(99) if len((e := episode(rng, 0, i % 4, [1, 2, 3])).replies) == 4)
    longest = max(s.end - s.start for s in sample.segments if s.trainable)
    assert sample.response_tokens > longest
    table = LearnerTable.model_validate({"overlong_buffer": 1, "overlong_penalty": 1.0})
    for limit, wanted in ((longest, -1.0), (longest + 1, 0.0), (sample.response_tokens, 0.0)):
        limited = replace(sample, sampling=Sampling(max_new_tokens=limit))
        assert trained_rewards([Judged(limited, 0.5)], table) == [pytest.approx(0.5 + wanted)]
