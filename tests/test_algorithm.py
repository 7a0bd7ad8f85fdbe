"""The page that explains a step computes what the product computes."""

from __future__ import annotations

import copy
import re
import tomllib
from pathlib import Path

import pytest
import torch
from samples import groups_of

from broker.plugins import load_file
from learner.losses.objectives import OBJECTIVES
from learner.losses.table import ObjectiveTable
from learner.model.load import load_model
from learner.tables import LearnerTable
from learner.training.optimizer import build_optimizer
from learner.training.trainer import TrainState, train_step

PAGE = Path(__file__).resolve().parent.parent / "docs" / "algorithm.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), re.DOTALL)


def test_the_naive_step_is_the_products_step(tiny_model: Path, tmp_path: Path) -> None:
    """Two steps, so that the optimizer's state counts too; the loss and every weight."""
    torch.set_num_threads(1)
    (tmp_path / "naive.py").write_text("import torch\n" + "\n".join(blocks("python")))
    naive = load_file(tmp_path / "naive.py")
    page, product = (load_model(str(tiny_model)) for _ in range(2))
    page.set_attn_implementation("eager")
    before = copy.deepcopy(page)
    table = LearnerTable.model_validate(
        {"objective": "grpo", "pack_tokens": 128, "optimizer": {"lr": 1e-3, "eps": 1e-3, "schedule": "constant"}}
    )
    state = TrainState.begin(product, build_optimizer(product, table.optimizer), 0, table)
    optimizer = torch.optim.AdamW(page.parameters(), lr=1e-3, betas=(0.0, 0.95), eps=1e-3, weight_decay=0.0)
    for seed in range(2):
        groups = groups_of(3, seed)
        loss = naive.grpo_step(page, optimizer, groups)
        assert train_step(state, groups, table, 10).metrics["loss"] == pytest.approx(loss, rel=1e-4)
    moved = 0.0
    for (name, mine), theirs, old in zip(
        page.named_parameters(), product.parameters(), before.parameters(), strict=True
    ):
        assert torch.allclose(mine, theirs, atol=2e-6), name
        moved = max(moved, float((mine - old).detach().abs().max()))
    assert moved > 1e-4


def test_its_names_are_the_objectives() -> None:
    table = PAGE.read_text().partition("## Other objectives")[2]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == OBJECTIVES.keys()
    (toml,) = blocks("toml")
    for line in toml.splitlines()[1:]:
        given = tomllib.loads(line.removeprefix("# "))["objective"]
        ObjectiveTable.model_validate({"name": given} if isinstance(given, str) else given)


def test_the_files_it_names_are_there() -> None:
    root = PAGE.parent.parent
    named = re.findall(r"`((?:learner|tests)/[\w/]+\.py)`", PAGE.read_text())
    assert named and all((root / path).is_file() for path in named)
