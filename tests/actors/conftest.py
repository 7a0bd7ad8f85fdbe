"""What the tests of the SGLang engine share: two policies of one shape, and one real server for all of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from test_local_engine import Policy

    from actors.sglang.keeper import Keeper
    from actors.sglang.server import Server

SERVED = 256  # tokens of the server's context; an engine may use less of it


def _policy(directory: Path, seed: int) -> Policy:
    import torch
    from test_local_engine import SHAPE, Policy
    from transformers import Qwen3Config

    torch.set_num_threads(1)
    shape = {**SHAPE, "max_position_embeddings": SERVED}
    return Policy(directory, Qwen3Config(**shape, head_dim=16, tie_word_embeddings=True), seed)


@pytest.fixture(scope="session")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    return _policy(tmp_path_factory.mktemp("policy"), 0)


@pytest.fixture(scope="session")
def newer(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    return _policy(tmp_path_factory.mktemp("newer"), 1)


_KEPT: list[Keeper] = []
"""The server that lives: its scheduler takes half a core even where nobody asks it anything, so it ends with the tests of this folder."""


def _end() -> None:
    while _KEPT:
        _KEPT.pop().stop()


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    if nextitem is None or nextitem.path.parent != item.path.parent:
        _end()


@pytest.fixture(scope="session")
def server(policy: Policy, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all tests of this folder; each puts the weights there that it needs."""
    from actors.sglang.keeper import Keeper
    from actors.sglang.server import Server

    server = Server(
        tmp_path_factory.mktemp("server"), lambda: str(policy.path), device="cpu", dtype="float32", slots=8, context=SERVED, seed=1,
    )  # fmt: skip
    _KEPT.append(Keeper(server))
    _KEPT[-1].begin()
    yield server
    _end()
