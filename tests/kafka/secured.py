"""A broker with TLS, SCRAM and an authorizer, on certificates that are made for the test."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

from broker.kafka.server import KafkaServer
from monitoring.ports import free_ports

ADMIN = "admin"
USERS = {ADMIN: "admin-secret", "learner": "learner-secret", "actor": "actor-secret", "rewarder": "rewarder-secret"}


def certificates(directory: Path) -> tuple[Path, Path]:
    """A certificate authority and the broker's key with its certificate, as PEM files."""
    directory.mkdir(parents=True)
    ca, key = directory / "ca.pem", directory / "ca.key"

    def openssl(*arguments: object) -> None:
        subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)

    def request(name: str, *arguments: object) -> None:
        openssl("req", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={name}", *arguments)

    request("test authority", "-x509", "-days", 2, "-keyout", key, "-out", ca)
    request("127.0.0.1", "-keyout", directory / "broker.key", "-out", directory / "broker.csr")
    (directory / "names").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n")
    openssl(
        "x509", "-req", "-days", 2, "-in", directory / "broker.csr", "-CA", ca, "-CAkey", key, "-CAcreateserial",
        "-extfile", directory / "names", "-out", directory / "broker.crt",
    )  # fmt: skip
    store = directory / "broker.pem"
    store.write_text((directory / "broker.key").read_text() + (directory / "broker.crt").read_text() + ca.read_text())
    return ca, store


class SecuredServer(KafkaServer):
    """``address`` takes TLS with SCRAM alone; ``plain`` takes neither, for comparison. The ``super.users`` may do everything, others what ACLs say."""

    def __init__(self, directory: Path) -> None:
        self.ca, store = certificates(directory / "certificates")
        ports = free_ports(4)
        self.plain, self.wrong = f"127.0.0.1:{ports[2]}", f"127.0.0.1:{ports[3]}"
        nowhere = free_ports(1)[0]
        own = f"127.0.0.1:{ports[0]}"
        kinds = {"CONTROLLER": "PLAINTEXT", "SECURE": "SASL_SSL", "PLAIN": "PLAINTEXT", "WRONG": "PLAINTEXT"}
        listeners = f"SECURE://{own},PLAIN://{self.plain},WRONG://{self.wrong}"
        super().__init__(
            directory, [(ports[0], ports[1])], users=USERS, settings={
                "listeners": f"{listeners},CONTROLLER://127.0.0.1:{ports[1]}",
                "advertised.listeners": f"SECURE://{own},PLAIN://{self.plain},WRONG://127.0.0.1:{nowhere}",
                "inter.broker.listener.name": "PLAIN",
                "listener.security.protocol.map": ",".join(f"{name}:{kind}" for name, kind in kinds.items()),
                "sasl.enabled.mechanisms": "SCRAM-SHA-256",
                "listener.name.secure.scram-sha-256.sasl.jaas.config":
                    "org.apache.kafka.common.security.scram.ScramLoginModule required;",
                "ssl.keystore.type": "PEM", "ssl.keystore.location": store,
                "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
                "super.users": f"User:{ADMIN};User:ANONYMOUS",
            },
        )  # fmt: skip

    def environment(self, user: str, **more: str) -> Mapping[str, str]:
        """What a daemon of that user is given."""
        names = {
            "SECURITY_PROTOCOL": "SASL_SSL", "SASL_MECHANISM": "SCRAM-SHA-256", "SSL_CAFILE": str(self.ca),
            "SASL_PLAIN_USERNAME": user, "SASL_PLAIN_PASSWORD": USERS[user], **more,
        }  # fmt: skip
        return {f"HEADRACE_KAFKA_{name}": value for name, value in names.items() if value}
