"""The weight road between a learner and a receiver on one GPU: through the host's memory, in order, and never by NCCL."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from gputools import DEVICE, ON_ONE_GPU
from patience import HANG, until

from broker.control.server import ControlServer
from broker.errors import WeightPushError
from broker.weights.client import WeightClient
from broker.weights.devices import gpu_of
from broker.weights.layout import specs_of
from broker.weights.publisher import WeightPublisher
from broker.weights.receiver import DistributedReceiver

pytestmark = ON_ONE_GPU
TIMEOUT = 20.0


class Road:
    """A publisher of weights on the GPU, and a receiver that keeps what it takes there."""

    def __init__(self, directory: Path, backend: str) -> None:
        template = directory / "template"
        template.mkdir()
        (template / "config.json").write_text("{}")
        self.control = ControlServer()
        self.published: list[int] = []
        self.publisher = WeightPublisher(
            self.control, directory / "weights", template=template, timeout=TIMEOUT, bucket_bytes=1 << 20, backend=backend,
            device=DEVICE, on_published=lambda version, path, checksum: self.published.append(version),
        )  # fmt: skip
        self.taken: dict[int, dict[str, torch.Tensor]] = {}
        self.client = WeightClient("receiver", DistributedReceiver(self._take, DEVICE), lambda: {"gpu": gpu_of(DEVICE)})
        self.client.connect(self.control.endpoint)
        until(lambda: self.control.receivers())

    def _take(self, version: int, tensors: Mapping[str, torch.Tensor]) -> None:
        self.taken[version] = {name: tensor.to(DEVICE, copy=True) for name, tensor in tensors.items()}

    def close(self) -> None:
        self.client.close()
        self.publisher.close()
        self.control.close()


@pytest.fixture
def road(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Road]:
    road = Road(tmp_path, request.param)
    yield road
    road.close()


@pytest.mark.parametrize("road", ["gloo"], indirect=True)
def test_a_snapshot_is_of_the_moment_whatever_is_computed_behind_it(road: Road) -> None:
    """The copy goes on while the next step is being queued, and that step writes the same tensors."""
    parameters = {"w": torch.zeros(4096, 4096, device=DEVICE), "b": torch.zeros(7, device=DEVICE, dtype=torch.bfloat16)}
    road.publisher.warm(specs_of(parameters))
    for version in range(1, 6):
        for parameter in parameters.values():
            parameter.add_(1)
        started = time.monotonic()
        road.publisher.publish(version, parameters)
        blocked = time.monotonic() - started
        for parameter in parameters.values():
            parameter.mul_(100).div_(100)
        for parameter in parameters.values():
            parameter.mul_(-1).mul_(-1)
        assert road.publisher.wait(HANG) and version in road.taken
        assert blocked < TIMEOUT / 2
        for tensor in road.taken[version].values():
            assert tensor.is_cuda and bool((tensor == version).all())
    assert road.publisher.stats.evictions == 0


@pytest.mark.parametrize("road", ["nccl"], indirect=True)
def test_nccl_on_one_gpu_is_refused_with_the_cure(road: Road) -> None:
    road.publisher.publish(1, {"w": torch.ones(8, device=DEVICE)})
    until(lambda: road.publisher.failure is not None)
    with pytest.raises(WeightPushError, match=r'receiver and the learner are on one GPU .*backend = "gloo"'):
        road.publisher.publish(2, {"w": torch.ones(8, device=DEVICE)})


@pytest.mark.parametrize("road", ["nccl"], indirect=True)
def test_where_only_nccl_finds_that_out_the_weights_come_by_disk_and_nobody_hangs(road: Road) -> None:
    """As with a server that cannot say which device it has."""
    road.control.members()[0].status = {}
    road.client._client._status = lambda: {"receives": True}
    until(lambda: "gpu" not in road.control.members()[0].status)
    started = time.monotonic()
    road.publisher.publish(1, {"w": torch.ones(8, device=DEVICE)})
    assert road.publisher.wait(10 * TIMEOUT), f"still at it after {time.monotonic() - started} s"
    until(lambda: 1 in road.taken)
    assert road.published == [1]
