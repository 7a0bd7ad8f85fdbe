"""Changes alone: bit for bit what the whole would be, for those who hold what they were made from; everybody else gets the whole."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from patience import HANG, until
from safetensors.torch import load_file
from test_weights import Learner, together
from weights_publisher import ForkedPublisher

from broker.errors import WeightPushError
from broker.weights.publisher import WeightPublisher
from broker.weights.sparse import apply, encode

pytestmark = pytest.mark.lane("weights")  # one process that has loaded torch


def words(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int16).view(torch.uint8)


@pytest.mark.parametrize("share", [0.0, 1e-6, 0.001, 0.01, 0.2])
def test_what_is_made_of_the_changes_is_the_new_version_bit_for_bit(share: float) -> None:
    rng = torch.Generator().manual_seed(int(share * 1e6))
    base = torch.randint(0, 256, (400_000,), dtype=torch.uint8, generator=rng)
    new = base.clone()
    changed = torch.rand(200_000, generator=rng) < share
    new.view(torch.int16)[changed] ^= 1
    found = encode(base, new, 400_000)
    assert found is not None and found.numel() <= 4 * (int(changed.sum()) + 4)
    flat = base.clone()
    apply(flat, found)
    assert torch.equal(flat, new)


@pytest.mark.parametrize(
    "places", [(0,), (65_534,), (65_535,), (65_536,), (199_999,), (0, 199_999), (1, 65_536, 131_072, 131_073)]
)
def test_changes_may_lie_anywhere(places: tuple[int, ...]) -> None:
    base = torch.zeros(400_000, dtype=torch.uint8)
    new = base.clone()
    new.view(torch.int16)[list(places)] = -3
    found = encode(base, new, 1000)
    assert found is not None
    apply(base, found)
    assert torch.equal(base, new)


def test_numbers_that_are_equal_and_not_the_same_are_changes() -> None:
    base = torch.tensor([0.0, float("nan"), 1.0], dtype=torch.bfloat16).view(torch.uint8)
    new = torch.tensor([-0.0, float("nan"), 1.0], dtype=torch.bfloat16).view(torch.uint8)
    found = encode(base, new, 100)
    assert found is not None and found.numel() == 4, "a zero's sign, and no NaN that stayed"


def test_more_than_is_worth_it_is_no_change_at_all() -> None:
    base, new = torch.zeros(1000, dtype=torch.uint8), torch.ones(1000, dtype=torch.uint8)
    assert encode(base, new, 500) is None
    assert encode(base, new[:998], 10_000) is None and encode(base[:3], new[:3], 100) is None


def test_what_does_not_fit_changes_nothing() -> None:
    flat = words(1, 2, 3)
    for wrong in (words(4, 9), words(0, 9), words(1, 1, 2, 9, 9, 9), torch.zeros(3, dtype=torch.uint8)):
        before = flat.clone()
        with pytest.raises(WeightPushError):
            apply(flat, wrong)
        assert torch.equal(flat, before)


class Trained:
    """Weights in bfloat16 of which every version changes a hundredth."""

    def __init__(self) -> None:
        self._rng = np.random.default_rng(0)
        self.tensors = {
            "w": torch.from_numpy(self._rng.normal(0, 0.02, (300, 100)).astype(np.float32)).bfloat16(),
            "b": torch.zeros(7, dtype=torch.bfloat16),
        }

    def step(self, count: int = 300) -> dict[str, torch.Tensor]:
        places = torch.from_numpy(self._rng.integers(0, 30_000, count))
        self.tensors = {name: t.clone() for name, t in self.tensors.items()}
        self.tensors["w"].view(-1)[places] *= 1.01
        return self.tensors

    def mean(self) -> float:
        return float(self.tensors["w"].double().mean())


@pytest.fixture
def learner(tmp_path: Path) -> Iterator[Learner]:
    made = Learner(tmp_path)
    made.publisher.close()
    made.publisher = WeightPublisher(
        made.control, tmp_path / "weights", template=tmp_path / "template", timeout=4.0, bucket_bytes=4096, sparse=True,
        on_published=lambda version, path, checksum: made.published.append(version), begin=ForkedPublisher,
    )  # fmt: skip
    yield made
    made.close()


def publish(learner: Learner, version: int, weights: Trained, count: int = 300) -> None:
    learner.publisher.publish(version, weights.step(count))
    assert learner.publisher.wait(HANG) and learner.published[-1] == version


@pytest.mark.long
def test_receivers_that_hold_the_version_before_get_what_has_changed_and_all_others_the_whole(
    learner: Learner, tmp_path: Path
) -> None:
    weights, stats = Trained(), learner.publisher.stats
    first, second = together(learner, "good", "good")
    for version in (1, 2, 3):
        publish(learner, version, weights)
        for remote in (first, second):
            assert float(remote.wait("took", str(version))[2]) == weights.mean(), "bit for bit, says the checksum too"
    assert stats.sparse == 2 and stats.bytes < 1.2 * 60_016, "the whole once, then some hundred changes"
    saved = load_file(tmp_path / "weights" / "v-00000003" / "model.safetensors")
    assert torch.equal(saved["w"], weights.tensors["w"]), "on disk there are always all of them"

    late = learner.receiver("late")
    until(lambda: len(learner.control.receivers()) == 3)
    publish(learner, 4, weights)
    for remote in (first, second, late):
        remote.wait("took", "4")
    assert stats.sparse == 2, "one that has come since holds nothing"
    publish(learner, 5, weights)
    late.wait("took", "5")
    assert stats.sparse == 3

    os.kill(second.process.pid, signal.SIGSTOP)
    publish(learner, 6, weights)
    first.wait("took", "6")
    assert stats.evicted["r1"] == 1
    os.kill(second.process.pid, signal.SIGCONT)
    until(lambda: len(learner.control.receivers()) == 3)
    publish(learner, 7, weights)
    assert float(second.wait("took", "7")[2]) == weights.mean(), "an evicted one is brought up to date by the whole"
    before = stats.sparse
    publish(learner, 8, weights)
    second.wait("took", "8")
    assert stats.sparse == before + 1

    os.kill(learner.publisher.pid, signal.SIGKILL)
    publish(learner, 9, weights)
    publish(learner, 10, weights, count=30_000)
    publish(learner, 11, weights)
    for remote in (first, second, late):
        for version in ("9", "10", "11"):
            remote.wait("took", version)
    assert stats.sparse >= before + 2, "nine or eleven"
