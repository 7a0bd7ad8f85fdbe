"""What a pool cannot do is told before anything is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from broker.errors import RunFileError
from broker.runfile import RunFile
from learner.config import LearnerConfig
from learner.parallel.pool import check_stages


def check(learner: dict[str, Any], stage: dict[str, Any]) -> None:
    tables = {"learner": learner, "stage": [stage]}
    check_stages(LearnerConfig(RunFile(tables, Path(), Path("run.toml"))))


@pytest.mark.parametrize(
    ("learner", "stage", "told"),
    [
        ({"colocated": True}, {"kind": "rl"}, "colocated"),
        ({"offload": "all"}, {"kind": "rl"}, "offload"),
        ({"lora": {"rank": 4}}, {"kind": "rl"}, "lora"),
        ({}, {"kind": "sft", "offload": "optimizer"}, "offload"),
        ({}, {"kind": "rl", "learner": {"dtype": "bfloat16"}}, "dtype"),
    ],
)
def test_what_a_pool_cannot_do_is_refused(learner: dict[str, Any], stage: dict[str, Any], told: str) -> None:
    with pytest.raises(RunFileError, match=told):
        check(learner, stage)


def test_the_rest_is_taken() -> None:
    check({"gradient_checkpointing": True, "publish_dtype": "bfloat16"}, {"kind": "evaluate"})
