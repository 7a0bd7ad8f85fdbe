"""Supervised training: it learns, ends when it should, and goes on bit for bit."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from broker.errors import CheckpointError
from broker.messages import StepResult, decode, encode
from learner.data.mixture import MixedDocuments, Part
from learner.data.source import Document, Span
from learner.data.sums import SumsCorpus
from learner.model.load import load_model, load_tokenizer
from learner.reading import Redone, digest, rows_of
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


@pytest.mark.long
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


def test_what_a_step_has_read_is_rows_of_each_source_and_a_digest() -> None:
    documents = [np.arange(n, n + 3, dtype=np.int32) for n in range(4)]
    assert rows_of([("a", 4), ("b", 9), ("a", 5), ("a", 0), ("b", 11)]) == {
        "a": ((4, 2), (0, 1)),
        "b": ((9, 1), (11, 1)),
    }
    whole = digest(documents)
    assert digest(documents) == whole != digest(documents[::-1]) and rows_of([]) == {}
    result = StepResult(3, 0, 3, documents=(0, 4, whole), rows={"a": ((4, 2), (0, 1))})
    assert decode(encode(result)) == result
    assert not {"documents", "rows"} & StepResult(3, 0, 3).pack().keys(), "a step of reinforcement has neither"


def test_a_step_that_is_made_again_is_held_against_its_record(caplog: pytest.LogCaptureFixture) -> None:
    redone = Redone({(7, 3): "aa", (7, 4): "bb"})
    assert redone.check(7, 3, (48, 16, "aa")) and redone.check(7, 5, (80, 16, "cc")) and not caplog.records
    assert not redone.check(7, 4, (64, 16, "xx"))
    assert "step 4 of stage 7 reads other documents than before the restart (16 from number 64 on)" in caplog.text
    assert redone.check(7, 4, (64, 16, "xx")), "it is said once"


def mixed() -> MixedDocuments:
    """Ten documents and two, mixed half and half: a pass over both is twelve, of which the ten are not all."""
    parts = [Part("sums", Few(10, "3+7=3\n"), 1.0), Part("others", Few(2, "7+3=3\n"), 1.0)]
    return MixedDocuments(parts, seed=0)


@dataclass(frozen=True)
class Few:
    size: int
    text: str

    def document(self, number: int, level: float) -> Document:
        assert 0 <= number < self.size
        return Document(spans=(Span(f"{number} ", False), Span(self.text, True, "chain")))


def test_mixed_sources_are_read_on_behind_a_pass() -> None:
    torch.set_num_threads(1)
    model = load_model(TINY, init="random", seed=1)
    whole = SftTrainer(model, load_tokenizer(TINY), mixed(), stage(steps=5), 0)
    reports = list(whole.steps())
    rows = [row for report in reports for name, row in report.places if name == "sums"]
    assert sorted(rows) == list(range(10)) != rows, "the last ones too, though a pass of both sources is over before"
    assert reports[1].first == 4 and len(reports[1].tokens) == 4
    half = SftTrainer(load_model(TINY, init="random", seed=1), load_tokenizer(TINY), mixed(), stage(steps=5), 0)
    list(islice(half.steps(), 2))
    assert next(half.steps()).places == reports[2].places, "what is read follows from the number of the step"
