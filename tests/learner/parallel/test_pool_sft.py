"""Supervised training in a pool, on two sources: the steps of one process, stopped on some ranks and gone on with on others."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from pooltools import Ranks, executor

from learner.data.greetings import GreetingReplies
from learner.data.mixture import MixedDocuments, Part
from learner.data.sums import SumsCorpus
from learner.stages.sft import SftStage
from learner.training.checkpoint import Checkpoints, read_state
from learner.training.placement import ALONE
from learner.training.sft import SftTrainer

pytestmark = [pytest.mark.processes, pytest.mark.slow]

STAGE = {
    "kind": "sft", "steps": 8, "documents_per_step": 6, "pack_tokens": 64, "until_tag": "chain",
    "optimizer": {"lr": 1e-3, "muon": 5.0, "warmup_steps": 2},
}  # fmt: skip


def mixed() -> MixedDocuments:
    """A source without end beside one of four documents, which comes to its end within the steps."""
    return MixedDocuments([Part("sums", SumsCorpus(), 3.0), Part("replies", GreetingReplies(4), 1.0)], 0)


def main(plan: Any, model: str, home: str, load: str, count: str) -> dict[str, Any]:
    """Take ``count`` steps, from the checkpoint ``load`` if there is one, and save."""
    made = executor(plan, model, home)
    extra: Any = None
    if load:
        extra = made.load(Path(load))
    else:
        made.start("pretrained")
    training = SftTrainer(made.model, made.tokenizer(), mixed(), SftStage.model_validate(STAGE), 0, plan)
    if extra:
        training.load_state_dict(extra)
    reports = list(islice(training.steps(), int(count)))
    path = made.save(Checkpoints(Path(home)), 9, f"after-{count}", training.state_dict())
    return {"metrics": [r.metrics for r in reports], "places": [r.places for r in reports], "path": str(path)}


@pytest.fixture(scope="module")
def alone(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    torch.set_num_threads(1)
    return main(ALONE, str(tiny_model), str(tmp_path_factory.mktemp("alone")), "", "8")


def check(found: list[dict[str, float]], wanted: list[dict[str, float]]) -> None:
    assert len(found) == len(wanted)
    for one, two in zip(found, wanted, strict=True):
        two.pop("activation_memory_bytes", None)  # in a pool it cannot be told from weights that come and go
        assert one == pytest.approx(two, rel=1e-4, abs=1e-5)


def test_steps_on_two_ranks_then_on_three_are_those_of_one_process(
    alone: dict[str, Any], tiny_model: Path, two_ranks: Ranks, three_ranks: Ranks, tmp_path: Path
) -> None:
    first = two_ranks.call(__file__, str(tiny_model), str(tmp_path), "", "4")
    check(first["metrics"], alone["metrics"][:4])
    assert read_state(Path(first["path"]))["extra"]["curriculum"]["step"] == 4
    rest = three_ranks.call(__file__, str(tiny_model), str(tmp_path), first["path"], "4")
    check(rest["metrics"], alone["metrics"][4:])
    places = [tuple(map(tuple, step)) for found in (first, rest) for step in found["places"]]
    assert places == list(alone["places"])
    assert {row for step in places for name, row in step if name == "replies"} == {0, 1, 2, 3}
