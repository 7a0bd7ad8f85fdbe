"""How an actor comes by its first policy while newer ones replace it."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from patience import HANG

from actors.__main__ import follow
from actors.intake import GROUP, Intake
from actors.newest import NewestPolicy
from actors.policy import PolicyFollower
from broker.errors import LogUnavailable, WeightPushError
from broker.log import Log
from broker.messages import PolicyVersion, encode
from broker.open import open_log
from broker.run import Run
from broker.sqlite.reading import SqliteConsumer
from broker.topics import Topics
from monitoring.daemon import Stop

TOPICS = Topics("t", partitions=1)


def publish(log: Log, version: int) -> PolicyVersion:
    record = PolicyVersion(version, f"/nowhere/v-{version}", "0", "tcp://127.0.0.1:1", "learner")
    producer = log.producer()
    producer.send(TOPICS.policy, b"t", encode(record))
    producer.flush()
    producer.close()
    return record


def test_an_engine_that_failed_ends_its_daemon(tmp_path: Path) -> None:
    file = tmp_path / "r.toml"
    file.write_text(f'[run]\nname = "t"\nmodel = "m"\n[broker]\nurl = "sqlite://{tmp_path}/log"\n')
    run = Run.open(file, directory=tmp_path / "run")
    log = run.open_log()
    newest, stop = NewestPolicy(publish(log, 1)), Stop()
    client: Any = SimpleNamespace(refused="", failure="", connect=lambda endpoint: None)
    thread = threading.Thread(target=follow, args=(run, [client], newest, stop))
    thread.start()
    client.failure = "state: RuntimeError: CUDA error"
    assert stop.wait(HANG)
    thread.join()
    log.close()


def test_a_prompt_whose_commit_fails_is_committed_though_no_other_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actors.intake.FLUSH_SECONDS", 0.0)
    log = open_log(f"sqlite://{tmp_path}/log")
    log.create(TOPICS.specs())
    producer = log.producer()
    producer.send(TOPICS.prompts, b"k", b"a prompt")
    producer.flush()
    producer.close()
    intake = Intake("a", log, TOPICS)
    (record,) = intake.take(1)
    intake.done(record)
    with monkeypatch.context() as patch, pytest.raises(LogUnavailable):
        patch.setattr(SqliteConsumer, "commit", away)
        intake.flush()
    assert intake.pending
    intake.flush()
    assert log.committed(TOPICS.group(GROUP), TOPICS.prompts) == {0: 1} and not intake.pending
    intake.close()
    log.close()


def away(*of: object) -> None:
    raise LogUnavailable("the log is away")


def test_a_policy_that_is_removed_while_it_is_read_is_followed_by_a_newer_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actors.newest.NEWER_SECONDS", 0.5)
    log = open_log(f"sqlite://{tmp_path}/log")
    log.create(TOPICS.specs())
    newest = NewestPolicy(publish(log, 1))
    follower = PolicyFollower(log, TOPICS)
    assert follower.poll(5.0) == newest.get()
    tried: list[int] = []
    errors: list[Exception] = [WeightPushError("no weights there"), ValueError("no tokenizer in it")]

    def use() -> str:
        tried.append(newest.get().version)
        if newest.get().version < 3:
            publish(log, newest.get().version + 1)
            raise errors.pop()
        return "loaded"

    assert newest.use(follower, use) == "loaded" and tried == [1, 2, 3]

    def fail() -> str:
        raise OSError("no such file")

    with pytest.raises(OSError, match="no such file"):
        newest.use(follower, fail)

    newest.set(replace(newest.get(), path=str(tmp_path)))

    def fail_though_the_files_are_there() -> str:
        publish(log, 9)
        return fail()

    with pytest.raises(OSError, match="no such file"):
        newest.use(follower, fail_though_the_files_are_there)
    assert newest.get().version == 3
    follower.close()
    log.close()
