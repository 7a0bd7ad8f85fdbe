"""Supervised training: it learns, ends when it should, and goes on bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from broker.errors import CheckpointError
from broker.messages import StepResult, decode, encode
from learner.data.source import Document, Span
from learner.data.sums import SumsCorpus
from learner.model.load import load_model, load_tokenizer
from learner.reading import Read
from learner.stages.sft import SftStage
from learner.training.checkpoint import Checkpoints, Progress, read_state
from learner.training.sft import Curriculum, SftTrainer
from learner.training.trainer import state_sha256

TINY = str(Path(__file__).resolve().parents[3] / "recipes" / "tiny_model")


def stage(**changes: Any) -> SftStage:
    fields = {
        "kind": "sft",
        "steps": 8,
        "documents_per_step": 4,
        "optimizer": {"lr": 4e-3, "muon": 5.0, "warmup_steps": 2},
        "until_tag": "chain",
        **changes,
    }
    return SftStage.model_validate(fields)


def trainer(**changes: Any) -> tuple[Any, SftTrainer]:
    torch.set_num_threads(1)
    model = load_model(TINY, init="random", seed=1)
    return model, SftTrainer(model, load_tokenizer(TINY), SumsCorpus(), stage(**changes), 0)


def test_it_goes_on_bit_for_bit_from_a_checkpoint(tmp_path: Path) -> None:
    model, whole = trainer()
    reports = list(whole.steps())
    assert [r.stage_step for r in reports] == list(range(1, 9)) and reports[-1].last and not reports[-2].last
    assert reports[-1].metrics["loss"] < reports[0].metrics["loss"]

    half_model, half = trainer()
    steps = half.steps()
    for _ in range(4):
        next(steps)
    checkpoints = Checkpoints(tmp_path)
    path = checkpoints.save(Progress(0, 0, 4), {"extra": half.state_dict()}, half_model.save_pretrained)
    resumed_model = load_model(str(path))
    resumed = SftTrainer(resumed_model, load_tokenizer(TINY), SumsCorpus(), stage(), 0)
    resumed.load_state_dict(read_state(path)["extra"])
    assert [r.stage_step for r in resumed.steps()] == [5, 6, 7, 8]
    assert state_sha256(resumed_model) == state_sha256(model)


class Same:
    """A source whose documents ask the same question: their prompts share their place in a chunk."""

    size = None

    def document(self, number: int, level: float) -> Document:
        question = Span("Compute 3+7 mod 10.\n", False)
        return Document(spans=(question, Span(f"3+7={number % 2}\n", True, "chain")))


def test_documents_that_share_their_prompt_count_their_tagged_tokens_as_ever() -> None:
    torch.set_num_threads(1)
    found = []
    for size in (4096, 16):  # together in one chunk, and each in a chunk of its own
        model = load_model(TINY, init="random", seed=1)
        training = SftTrainer(model, load_tokenizer(TINY), Same(), stage(steps=6, pack_tokens=size), 0)
        found.append([(r.metrics["loss"], r.metrics["accuracy"]) for r in training.steps()])
    assert found[0] == [pytest.approx(pair, rel=1e-3) for pair in found[1]] and found[0][-1][1] > 0


def test_the_curriculum_rises_with_the_accuracy_and_cools_down_at_the_end() -> None:
    config = stage(steps=1000, until_accuracy=0.98, level_step=0.5, cooldown_steps=10)
    at = Curriculum()
    for _ in range(60):
        at.step += 1
        at.see(1.0, config)
    assert at.level == 1.0 and 0 < at.reached < 60 and at.ended(config)
    at = Curriculum(step=100, level=1.0, accuracy=0.99, reached=95)
    assert not at.ended(config) and at.rate(config) == pytest.approx(4e-3 * 0.5)
    low = Curriculum()
    for _ in range(50):
        low.step += 1
        low.see(0.5, config)
    assert low.level == 0.0 and low.reached == -1


def test_checkpoints_are_whole_or_not_there(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    model = load_model(TINY, init="random", seed=1)

    def fail(directory: Path) -> None:
        (directory / "half").write_text("x")
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        checkpoints.save(Progress(1, 0, 1), {}, fail)
    assert checkpoints.newest() is None
    tree = {"a": [1, (2.5, None, "x")], "b": {3: torch.arange(4)}, "flag": True}
    for version in range(1, 5):
        path = checkpoints.save(Progress(version, 1, version, False, version), tree, model.save_pretrained, keep=2)
    named = checkpoints.save(Progress(0, 0, 9), tree, model.save_pretrained, keep=2, name="stage-0-base")
    found = read_state(path)
    assert found["a"] == [1, (2.5, None, "x")] and found["b"][3].tolist() == [0, 1, 2, 3] and found["flag"] is True
    assert [p.name for p, _ in checkpoints.all()] == [
        named.name,
        "step-00000003-1-00000003",
        "step-00000004-1-00000004",
    ]
    newest = checkpoints.newest()
    assert newest is not None and newest[1] == Progress(4, 1, 4, False, 4)
    with pytest.raises(CheckpointError, match="cannot hold"):
        checkpoints.save(Progress(), {"x": object()}, model.save_pretrained)
    (path / "headrace.json").write_text("{")
    with pytest.raises(CheckpointError, match="no readable checkpoint"):
        read_state(path)


def test_what_steps_have_read_is_told_once_and_is_the_same_after_a_redo() -> None:
    documents = [np.arange(n, n + 3, dtype=np.int32) for n in range(6)]
    one, other = Read(), Read()
    assert one.told() is None
    for first in (0, 2, 4):
        one.take(first, documents[first : first + 2])
    other.take(0, documents[:4])
    other.take(0, documents[:2])  # killed, and redone from the beginning
    other.take(2, documents[2:])
    whole = one.told()
    assert whole is not None and whole[:2] == (0, 6) and other.told() == whole and one.told() is None
    other.take(0, [*documents[:5], documents[0]])
    again = other.told()
    assert again is not None and again[:2] == (0, 6) and again[2] != whole[2], "other documents"
    result = StepResult(3, 0, 3, documents=whole)
    assert decode(encode(result)) == result and "documents" not in StepResult(3, 0, 3).pack()
