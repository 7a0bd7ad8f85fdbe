"""TLS, SCRAM and an authorizer: each daemon does its work with the rights that docs/kafka.md gives it, and what is refused is said."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from patience import HANG
from secured import ADMIN, SecuredServer

from broker.errors import LogError, LogUnavailable, RunFileError
from broker.kafka.causes import listen
from broker.kafka.settings import KafkaSettings, security_from
from broker.log import Consumer, Record
from broker.outstanding import outstanding
from broker.topics import STEPS_OWNER, Topics

if TYPE_CHECKING:
    from broker.kafka.log import KafkaLog

pytestmark = pytest.mark.kafka
PAGE = Path(__file__).resolve().parents[2] / "docs" / "kafka.md"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecuredServer]:
    server = SecuredServer(tmp_path_factory.mktemp("secured"))
    server.start()
    yield server
    server.stop()


def opened(address: str, environment: Mapping[str, str]) -> KafkaLog:
    from broker.kafka.log import KafkaLog

    return KafkaLog(KafkaSettings.parse(f"kafka://{address}?replication=1", environment))


def refusal(address: str, environment: Mapping[str, str]) -> LogError:
    """The error that opening the log ends with."""
    with pytest.raises(LogError) as caught:
        opened(address, environment).close()
    return caught.value


def test_why_a_login_fails_is_said_and_ends_the_daemon(server: SecuredServer) -> None:
    for change, why in (
        ({"SASL_PLAIN_PASSWORD": "wrong"}, "refuses? the user or the password"),
        ({"SSL_CAFILE": ""}, "certificate is not trusted here"),
        ({"SASL_MECHANISM": "PLAIN"}, "does not offer this way to log in"),
    ):
        error = refusal(server.address, server.environment(ADMIN, **change))
        assert re.search(why, str(error)) and "HEADRACE_KAFKA_" in str(error)
        if (
            "SASL_PLAIN_PASSWORD" not in change
        ):  # the broker closes the connection with its refusal: the client may lose that
            assert not isinstance(error, LogUnavailable), "waiting cures none of these"


def test_a_wrong_port_or_address_is_named_and_waited_for(server: SecuredServer) -> None:
    for address, environment, why in (
        (server.address, {}, "may want TLS or a login"),
        (server.plain, server.environment(ADMIN), "does not speak TLS on this port"),
        (
            server.wrong,
            {},
            rf"{server.wrong} answers, but the brokers call themselves 127.0.0.1:\d+ .advertised.listeners",
        ),
    ):
        listen()
        logging.getLogger("kafka").error("UnsupportedSaslMechanism")  # of another client, right before
        error = refusal(address, environment)
        assert isinstance(error, LogUnavailable) and re.search(why, str(error)), error


def test_environment_variables_are_checked_before_anything_connects(tmp_path: Path) -> None:
    with pytest.raises(RunFileError, match="did you mean 'sasl_plain_password'"):
        security_from({"HEADRACE_KAFKA_SASL_PASSWORD": "x"})
    with pytest.raises(RunFileError, match=r"SSL_CAFILE = '/nowhere\.pem': there is no such file"):
        security_from({"HEADRACE_KAFKA_SSL_CAFILE": "/nowhere.pem"})
    (tmp_path / "token").write_text("first\n")
    provider = security_from({"HEADRACE_KAFKA_SASL_OAUTH_TOKEN_FILE": str(tmp_path / "token")})[
        "sasl_oauth_token_provider"
    ]
    assert provider.token() == "first"
    (tmp_path / "token").write_text("second")
    assert provider.token() == "second"


def grant_the_page(server: SecuredServer, run: str) -> None:
    """Give each role exactly what the table of docs/kafka.md says."""
    from kafka.admin import (
        ACL,
        ACLOperation,
        ACLPermissionType,
        ACLResourcePatternType,
        KafkaAdminClient,
        ResourcePattern,
        ResourceType,
    )

    rows = re.findall(r"^\| (\w+) \| ([\w ]+) \| (\w+) \| `(\S+)` \| ([A-Z_ ]+) \|$", PAGE.read_text(), re.M)
    assert {row[0] for row in rows} == {"learner", "actor", "rewarder"} and len(rows) > 10
    acls = [
        ACL(
            f"User:{who}", "*", ACLOperation[operation], ACLPermissionType.ALLOW,
            ResourcePattern(
                ResourceType[kind.upper().replace(" ", "_")], name.replace("RUN.", f"{run}."), ACLResourcePatternType[pattern.upper()],
            ),
        )
        for who, kind, pattern, name, operations in rows for operation in operations.split()
    ]  # fmt: skip
    admin = KafkaAdminClient(bootstrap_servers=server.plain)
    done = admin.create_acls(acls)
    admin.close()
    assert not done["failed"]


def taken(consumer: Consumer, count: int) -> list[Record]:
    out: list[Record] = []
    deadline = time.monotonic() + HANG
    while len(out) < count:
        assert time.monotonic() < deadline
        out += consumer.poll(16, 0.5)
    return out


def test_each_daemon_does_its_work_with_the_rights_of_the_page_and_no_more(server: SecuredServer) -> None:
    grant_the_page(server, "least")
    topics = Topics("least", 2)
    learner, actor, rewarder = (
        opened(server.address, server.environment(who)) for who in ("learner", "actor", "rewarder")
    )
    learner.create(topics.specs())
    for log in (actor, rewarder):
        log.create(topics.specs())  # they see their own, and make none
    steps = learner.exclusive_producer(topics.group(STEPS_OWNER), "the learner")
    steps.send(topics.steps, b"0", b"a manifest")
    steps.send(topics.prompts, b"k", b"prompt", 0)
    assert len(steps.flush()) == 2

    prompts = actor.consumer([topics.prompts], topics.group("actors"), "actor-0", outstanding(actor, topics))
    assert [r.value for r in taken(prompts, 1)] == [b"prompt"]
    producer = actor.producer()
    producer.send(topics.trajectories, b"k", b"sample", 1)
    producer.flush()
    prompts.commit({(topics.prompts, 0): 1})
    assert actor.reader(topics.policy).poll(1, 0.0) == []

    samples = rewarder.consumer(
        [topics.trajectories], topics.group("rewarder.vowels"), "vowels-0", outstanding(rewarder, topics)
    )
    assert [r.value for r in taken(samples, 1)] == [b"sample"]
    votes = rewarder.producer()
    votes.send(topics.rewards, b"k", b"vote", 0)
    votes.flush()
    samples.commit({(topics.trajectories, 1): 1})
    assert learner.committed(topics.group("rewarder.vowels"), topics.trajectories) == {1: 1}

    with pytest.raises(LogError, match=r"docs/kafka\.md|there is no topic"):
        votes.send(topics.prompts, b"k", b"forged", 0)
        votes.flush()
    learner.trim(topics.prompts, {0: 1})
    assert learner.begins(topics.prompts)[0] == 1
    for thing in (prompts, samples, steps, producer, votes, learner, actor, rewarder):
        thing.close()
