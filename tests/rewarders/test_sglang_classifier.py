"""A classifier of transformers behind a real SGLang server: its scores are those that the model gives in the rewarder's own process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from spoken import group
from test_rewarder_worker import TOPICS, worker_of
from test_served import judged, publish

from actors.sglang.server import Server
from broker.calls import CallRefused
from broker.errors import Outage
from broker.open import open_log
from rewarders.reward_model import RewardModel, RewardServer

pytestmark = pytest.mark.sglang
TINY = Path(__file__).resolve().parents[2] / "recipes" / "tiny_model"
TEXTS = ["5", "It is five.", "a longer answer of many words " * 4, "no", "<think>so</think>maybe 6"]


def classifier(directory: Path, labels: int) -> Path:
    """A classifier of the tiny recipe's shape with random weights, large enough that replies differ; written as ``train_reward`` writes its own."""
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    from learner.training.reward_model import save_classifier

    torch.manual_seed(labels)
    model = AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(TINY, num_labels=labels))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(5)
    save_classifier(model, str(TINY), directory)
    return directory


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[int], tuple[Path, Server]]]:
    """A model of so many labels and its server, each started once."""
    running: dict[int, tuple[Path, Server]] = {}

    def serve(labels: int) -> tuple[Path, Server]:
        if labels not in running:
            path = classifier(tmp_path_factory.mktemp(f"model{labels}"), labels)
            server = Server(
                tmp_path_factory.mktemp("server"), lambda: str(path), device="cpu", dtype="float32", slots=8, context=256, seed=1,
                arguments=("--is-embedding",),
            )  # fmt: skip
            server.start()
            running[labels] = path, server
        return running[labels]

    yield serve
    for _, server in running.values():
        server.stop()


def test_scores_are_those_of_transformers(served: Callable[[int], tuple[Path, Server]]) -> None:
    path, server = served(1)
    wanted = [r.value for r in RewardModel(model=str(path), device="cpu", squash=False).judge(group(TEXTS))]
    asked = RewardServer(url=server.url, tokenizer=str(path), squash=False, batch=3)
    assert [r.value for r in asked.judge(group(TEXTS))] == pytest.approx(wanted, abs=1e-3)
    assert len(set(wanted)) == len(wanted)


def test_votes_of_a_worker_that_asks_the_server(served: Callable[[int], tuple[Path, Server]], tmp_path: Path) -> None:
    path, server = served(1)
    log = open_log(f"sqlite://{tmp_path}/log")
    log.create(TOPICS.specs())
    publish(log, [TEXTS, ["6", "<think>never"]])
    options = {
        "url": server.url,
        "tokenizer": str(path),
        "worker": {"start_timeout": 110.0, "timeout": 60.0, "memory_mb": 0},
    }
    found = judged(log, worker_of(log, tmp_path, use="rewarders.reward_model:RewardServer", **options), 7)
    model = RewardModel(model=str(path), device="cpu")
    assert found["g-0@0"] == pytest.approx([r.value for r in model.judge(group(TEXTS))], abs=1e-3)
    assert found["g-1@0"] == pytest.approx([r.value for r in model.judge(group(["6", "<think>never"]))], abs=1e-3)
    assert found["g-1@0"][1] == 0.0, "an unfinished thought has no summary to score"
    log.close()


def test_probabilities_of_several_labels(served: Callable[[int], tuple[Path, Server]]) -> None:
    path, server = served(2)
    wanted = [r.value for r in RewardModel(model=str(path), device="cpu", label=1).judge(group(TEXTS))]
    for api in ("sglang", "openai"):
        asked = RewardServer(url=server.url, api=api, model=str(path), tokenizer=str(path), label=1)
        assert [r.value for r in asked.judge(group(TEXTS))] == pytest.approx(wanted, abs=1e-3), api


def test_one_label_has_no_probabilities_to_ask_for(served: Callable[[int], tuple[Path, Server]]) -> None:
    """SGLang's /v1/classify takes the softmax of the one score, which is 1 for every reply."""
    path, server = served(1)
    with pytest.raises(CallRefused, match='api = "sglang"'):
        RewardServer(url=server.url, api="openai", tokenizer=str(path)).judge(group(["yes", "no"]))


def test_a_server_that_has_gone_is_an_outage(served: Callable[[int], tuple[Path, Server]]) -> None:
    path, server = served(2)
    asked = RewardServer(url=server.url, tokenizer=str(path), tries=2, backoff=0.05)
    assert asked.judge(group(["5"]))
    server.stop()
    with pytest.raises(Outage):
        asked.judge(group(["5"]))
