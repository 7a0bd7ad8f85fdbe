"""A teacher's log-probabilities are transformers' own, in batches as alone, at the temperature of each sample."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from judging import Remote
from spoken import spoken
from transformers import AutoConfig, AutoModelForCausalLM

from broker.calls import CallRefused
from broker.errors import MessageError, RunFileError
from broker.messages import Sampling, Segment, Trajectory, VersionSpan
from learner.model.load import save_tokenizer
from rewarders.beside import beside
from rewarders.config import RewarderTable, in_run
from rewarders.registry import checked
from rewarders.teacher import Teacher, TeacherServer

TINY = Path(__file__).resolve().parents[2] / "recipes" / "tiny_model"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model of the tiny recipe's shape whose random weights are large enough to have opinions."""
    directory = tmp_path_factory.mktemp("teacher")
    torch.manual_seed(3)
    made = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(TINY))
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim == 2:
                parameter.mul_(5)
    made.save_pretrained(directory)
    save_tokenizer(str(TINY), directory)
    return str(directory)


def sample(prompt: int, *turns: int, temperature: float = 1.0, seed: int = 0, **fields: Any) -> Trajectory:
    """Random tokens: a prompt, and turns of the lengths given, of which every second one is not the model's."""
    segments, at = [Segment("prompt", 0, prompt, False)], prompt
    for number, length in enumerate(turns):
        segments.append(Segment("assistant" if number % 2 == 0 else "tool", at, at + length, number % 2 == 0))
        at += length
    tokens = np.random.default_rng(seed).integers(0, 300, at).astype(np.int32)
    return replace(
        spoken(""), tokens=tokens, logprobs=np.zeros(at, np.float32), segments=tuple(segments),
        versions=(VersionSpan(0, prompt),), sampling=Sampling(temperature=temperature), **fields,
    )  # fmt: skip


def slow_logprobs(model: str, one: Trajectory) -> list[float]:
    """What transformers itself gives the sample alone."""
    whole = AutoModelForCausalLM.from_pretrained(model).eval()
    with torch.inference_mode():
        logits = whole(input_ids=torch.from_numpy(one.tokens.astype(np.int64))[None]).logits[0].double()
    logprobs = (logits / (one.sampling.temperature or 1.0)).log_softmax(-1)
    return [float(logprobs[t - 1, one.tokens[t]]) for t in np.flatnonzero(one.mask())]


def taught(reward: Any) -> list[float]:
    values: list[float] = np.frombuffer(reward.logprobs, "<f4").tolist()
    return values


@pytest.mark.parametrize(("batch", "rows"), [(16, 1024), (2, 7), (1, 1)])
def test_a_batch_is_scored_as_each_sample_alone_at_its_own_temperature(model: str, batch: int, rows: int) -> None:
    samples = [
        sample(9, 20, seed=1), sample(3, 1, seed=2), sample(30, 41, temperature=0.6, seed=3),
        sample(5, 8, 6, 7, temperature=1.5, seed=4), sample(4, 12, temperature=0.0, seed=5),
    ]  # fmt: skip
    rewards = Teacher(model=model, student=str(TINY), device="cpu", batch=batch, rows=rows).judge(samples)
    for one, reward in zip(samples, rewards, strict=True):
        wanted = slow_logprobs(model, one)
        assert taught(reward) == pytest.approx(wanted, abs=1e-5)
        assert reward.value == pytest.approx(np.mean(wanted), abs=1e-5)
        assert checked(reward, one) is reward, "one for each trainable token"
    assert np.std([reward.value for reward in rewards]) > 0.1


def test_a_model_that_a_stage_makes_later_is_loaded_for_the_first_sample(model: str, tmp_path: Path) -> None:
    table = RewarderTable.model_validate(
        {"use": "rewarders.teacher:Teacher", "model": "{run}/checkpoints/x", "student": TINY.name, "device": "cpu"}
    )
    options = in_run(table, tmp_path).options
    assert options["model"] == str(tmp_path / "checkpoints" / "x")
    (tmp_path / "run.toml").touch()
    with beside(TINY.parent):
        teacher = Teacher(**options)
    with pytest.raises(RunFileError, match="cannot be loaded"):
        teacher.judge([sample(3, 4)])
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "x").symlink_to(model)
    assert len(taught(teacher.judge([sample(3, 4)])[0])) == 4


def test_a_teacher_with_another_vocabulary_is_refused(model: str, tmp_path: Path) -> None:
    tokenizer = json.loads((TINY / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    first, second = sorted(vocabulary, key=vocabulary.get)[40:42]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    save_tokenizer(str(TINY), tmp_path)
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(RunFileError, match=r"has another vocabulary than student .* 2 tokens differ"):
        Teacher(model=model, student=str(tmp_path), device="cpu")
    foreign = replace(sample(3, 4), tokens=np.full(7, 4000, np.int32))
    with pytest.raises(MessageError, match="token 4000 of g-0@0#0 is none of the 320"):
        Teacher(model=model, student=str(TINY), device="cpu").judge([foreign])


def test_what_is_no_language_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunFileError, match="cannot be loaded"):
        Teacher(model="no/such", student=str(TINY))
    with pytest.raises(MessageError, match="at least 1"):
        Teacher(model="no/such", student=str(TINY), batch=0)


def test_a_server_is_asked_for_the_log_probabilities_of_its_input(remote: Remote) -> None:
    one = sample(4, 3, 2, 5, seed=6)
    teacher = TeacherServer(url=remote.url, tries=1)
    reward = teacher(one)
    assert taught(reward) == pytest.approx([-one.tokens[t] / 1000 for t in np.flatnonzero(one.mask())], abs=1e-6)
    body = remote.seen()[0]["body"]
    assert body["input_ids"] == one.tokens.tolist() and body["sampling_params"]["max_new_tokens"] == 0
    remote.faults("empty")
    with pytest.raises(CallRefused, match="gives no log-probabilities"):
        teacher(one)
    remote.faults({"say": "other tokens"})
    with pytest.raises(CallRefused, match="of other tokens"):
        teacher(one)
    with pytest.raises(MessageError, match=r"sampled at temperature 0.6"):
        teacher(sample(4, 3, temperature=0.6))
