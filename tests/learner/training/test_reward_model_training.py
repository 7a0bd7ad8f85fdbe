"""A reward model learns an order from pairs and classes from labels, and what it wrote is what a rewarder loads."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from broker.errors import DataError, RunFileError
from broker.messages import ChatMessage
from learner.tables import OptimizerTable
from learner.training.reward_model import (
    Labelled,
    Pair,
    RewardModelReport,
    Settings,
    preference_loss,
    read_row,
    split,
    train_reward_model,
)
from rewarders.reward_model import RewardModel

pytestmark = pytest.mark.long

FAST = Settings(
    epochs=3,
    batch=16,
    max_tokens=96,
    held_out=0.2,
    device="cpu",
    optimizer=OptimizerTable(lr=3e-3, schedule="linear", warmup_steps=4),
)


def pairs(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """The polite reply is preferred."""
    rng = random.Random(seed)
    rows = []
    for i in range(count):
        a, b = rng.randint(1, 99), rng.randint(1, 99)
        rows.append(
            {
                "prompt": f"{i}: {a}+{b}?",
                "chosen": f"please: {a + b}",
                "rejected": rng.choice([f"go away {a + b}", f"{a + b}, you fool"]),
            }
        )
    return rows


def train(model: Path, rows: list[dict[str, Any]], out: Path, **changes: Any) -> RewardModelReport:
    torch.set_num_threads(1)
    return train_reward_model(str(model), rows, out, replace(FAST, **changes))


@pytest.fixture(scope="module")
def preferring(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RewardModelReport]:
    out = tmp_path_factory.mktemp("rm") / "model"
    return out, train(tiny_model, pairs(160), out)


def test_pairs_teach_an_order_that_holds_on_other_prompts(preferring: tuple[Path, RewardModelReport]) -> None:
    out, report = preferring
    assert report.held_out_accuracy is not None and report.held_out_accuracy >= 0.95 and report.majority == 0.5
    assert report.losses[0] == pytest.approx(0.69, abs=0.4) and report.losses[-1] < 0.2
    assert (report.kind, report.trained, report.held_out, report.steps) == ("pairs", 128, 32, 24)
    assert json.loads((out / "reward_model.json").read_text())["held_out_accuracy"] == report.held_out_accuracy
    assert not out.with_name("model.partial").exists()


def test_what_is_written_is_what_the_rewarder_loads(preferring: tuple[Path, RewardModelReport]) -> None:
    import sys

    sys.path.insert(0, str(Path(__file__).parents[2] / "rewarders"))
    from spoken import group

    judge = RewardModel(model=str(preferring[0]), device="cpu")
    nice, rude = judge.judge(group(["<think>x</think>please: 5", "<think>x</think>go away 5"], question="7: 2+3?"))
    assert nice.value > 0.5 > rude.value


def test_the_head_is_written_with_a_bias_of_0(preferring: tuple[Path, RewardModelReport]) -> None:
    """Servers that give the head a bias would leave it as it was drawn."""
    weights = load_file(preferring[0] / "model.safetensors")
    assert weights["score.bias"].shape == (1,) and not weights["score.bias"].any() and weights["score.weight"].any()


def test_labels_teach_classes(tiny_model: Path, tmp_path: Path) -> None:
    rows = [
        {"prompt": row["prompt"], "reply": row[key], "label": key == "chosen"}
        for row in pairs(100)
        for key in ("chosen", "rejected")
    ]
    report = train(tiny_model, rows, tmp_path / "safety")
    assert report.kind == "labels" and report.labels == 2 and report.majority == 0.5
    assert report.held_out_accuracy is not None and report.held_out_accuracy >= 0.95


def test_a_model_is_trained_further_and_the_same_again(
    preferring: tuple[Path, RewardModelReport], tmp_path: Path
) -> None:
    first = train(preferring[0], pairs(32, 5), tmp_path / "a", epochs=1)
    second = train(preferring[0], pairs(32, 5), tmp_path / "b", epochs=1)
    assert first == second and first.losses[0] < 0.3, "it begins where it was"
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in "ab"]
    assert weights[0] == weights[1]


def test_no_prompt_stands_on_both_sides() -> None:
    rows = [read_row({**row, "prompt": f"p{i % 10}"}, i) for i, row in enumerate(pairs(40))]
    kept, held = split(rows, 0.2, 0)
    assert len(held) == 8 and not {r.messages for r in kept} & {r.messages for r in held}
    assert split(rows[::-1], 0.2, 0)[1] == held[::-1], "whatever the order of the rows"
    assert split(rows, 0.0, 0) == (rows, []) and len(split(rows[:1], 0.5, 0)[0]) == 1


def test_the_loss_of_pairs_is_bradley_and_terrys() -> None:
    scores = torch.tensor([[2.0, 0.5], [-1.0, 1.0]])
    slow = -sum(torch.log(a.exp() / (a.exp() + b.exp())) for a, b in scores) / 2
    assert preference_loss(scores, 0.0) == pytest.approx(float(slow))
    assert preference_loss(scores, 0.1) == pytest.approx(float(slow) + 0.1 * 2.5**2 / 2)


def test_rows_are_read_as_pairs_or_labels() -> None:
    turns = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    assert read_row({"messages": turns, "chosen": "a", "rejected": "b"}, 0) == Pair(
        (ChatMessage("system", "s"), ChatMessage("user", "u")), "a", "b"
    )
    assert read_row({"prompt": "u", "reply": "a", "label": 2}, 0) == Labelled((ChatMessage("user", "u"),), "a", 2)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "x", "chosen": "a"}, "row 1: rejected"), ({"chosen": "a", "rejected": "b"}, "row 1: prompt"), ({"prompt": "x", "reply": "a"}, "row 1: label"),
        ({"prompt": "x", "reply": "a", "label": -1}, "row 1: label"), ({"prompt": "x", "reply": 5, "label": 0}, "row 1: reply"), ({"messages": ["x"]}, "row 1: messages"),
        ({"prompt": "x", "reply": "a", "label": 0}, "kinds"), ({"messages": "x", "reply": "a", "label": 0}, "row 1: messages must be a list"),
        ({"messages": [{"role": "user", "content": None}], "reply": "a", "label": 0}, r"row 1: messages\[0\]"),
    ],
)  # fmt: skip
def test_a_row_that_is_none_is_named(row: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=said):
        train_reward_model("nowhere", [pairs(1)[0], row], tmp_path / "out")


def test_nothing_is_written_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(RunFileError):
        train_reward_model(str(tmp_path / "nowhere"), pairs(4), tmp_path / "out")
    with pytest.raises(DataError, match="at least one"):
        train_reward_model("x", [], tmp_path / "out")
    assert not (tmp_path / "out").exists()
