"""A real Apache Kafka (KRaft, loopback ports) on this machine, for trying it out and for tests; Maven downloads it once.

``python -m broker.kafka.server DIRECTORY [--port N]`` runs one broker in the foreground until Ctrl-C.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from broker.errors import LogUnavailable, RunFault
from monitoring.daemon import PARENT, Stop
from monitoring.ports import free_ports

POM = Path(__file__).with_name("pom.xml")
JMX = Path(__file__).with_name("jmx.yaml")
START_SECONDS = 60.0
STOP_SECONDS = 20.0
SETTINGS = """\
process.roles=broker,controller
node.id={node}
controller.quorum.voters={voters}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT
log.dirs={data}
auto.create.topics.enable=false
offsets.topic.replication.factor={replicas}
offsets.topic.num.partitions=4
transaction.state.log.replication.factor={replicas}
transaction.state.log.min.isr={in_sync}
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor={replicas}
share.coordinator.state.topic.min.isr={in_sync}
group.initial.rebalance.delay.ms=0
message.max.bytes=17825792
replica.fetch.max.bytes=17825792
log.cleaner.dedupe.buffer.size=16777216
num.io.threads=4
num.network.threads=2
"""


def install(home: Path | None = None) -> Path:
    """The directory with Kafka's jars, downloaded on the first call. Raises RunFault if Java or Maven is missing, or the download fails."""
    home = home or Path(sys.prefix) / "kafka"
    done, lib = home / f"{hashlib.sha256(POM.read_bytes()).hexdigest()[:12]}.installed", home / "lib"
    for program, package in (("java", "openjdk-17-jre-headless"), ("mvn", "maven")):
        if shutil.which(program) is None:
            raise RunFault(f"Kafka needs {program}, which is not installed: apt install {package}")
    if not done.exists():
        home.mkdir(parents=True, exist_ok=True)
        shutil.copy(POM, home / "pom.xml")
        command = ["mvn", "-q", "-B", "-f", str(home / "pom.xml"), "dependency:copy-dependencies", "-DincludeScope=runtime",
                   f"-DoutputDirectory={lib}"]  # fmt: skip
        found = subprocess.run(command, capture_output=True, text=True)
        if found.returncode:
            last = (found.stdout + found.stderr).strip().splitlines()[-1:]
            raise RunFault(f"Maven could not fetch Kafka: {' '.join(last)}")
        done.touch()
    return lib


class KafkaServer:
    """Broker number ``node`` (from 1) of a cluster of ``len(ports)``; ``directory`` holds its data, settings and output.

    ``ports`` has the client port and the controller port of each broker; if empty, the broker is alone, on free ports. ``settings`` override
    the usual ones. ``users`` (name to password) may log in by SCRAM-SHA-256.
    """

    def __init__(
        self, directory: Path, ports: Sequence[tuple[int, int]] = (), node: int = 1, lib: Path | None = None,
        settings: Mapping[str, object] | None = None, users: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        self._lib = lib or install()
        self._users = dict(users or {})
        chosen = list(ports) or [(p, c) for p, c in [tuple(free_ports(2))]]
        self.port, controller = chosen[node - 1]
        self.directory, self.node = directory, node
        self.metrics = f"127.0.0.1:{free_ports(1)[0]}"
        """``host:port`` where the JMX exporter serves Kafka's own metrics."""
        self._process: subprocess.Popen[bytes] | None = None
        directory.mkdir(parents=True, exist_ok=True)
        replicas = min(3, len(chosen))
        voters = ",".join(f"{i}@127.0.0.1:{c}" for i, (_, c) in enumerate(chosen, 1))
        self._settings = directory / "server.properties"
        self._settings.write_text(
            SETTINGS.format(
                node=node, voters=voters, port=self.port, controller=controller, data=directory / "data",
                replicas=replicas, in_sync=2 if replicas == 3 else 1,
            ) + "".join(f"{key}={value}\n" for key, value in (settings or {}).items())
        )  # fmt: skip

    def __enter__(self) -> KafkaServer:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"kafka://{self.address}"

    @property
    def pid(self) -> int:
        return self._process.pid if self._process is not None else 0

    def _java(self, *arguments: str) -> list[str]:
        return ["java", "-Xms128m", "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1",
                "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-cp", f"{self._lib}/*", *arguments]  # fmt: skip

    def _exporter(self) -> list[str]:
        return [
            f"-javaagent:{agent}={self.metrics}:{JMX}" for agent in self._lib.glob("jmx_prometheus_javaagent-*.jar")
        ]

    def format(self, cluster: str = "aGVhZHJhY2UtY2x1c3Rlcg") -> None:
        """Format the data directory, unless it is formatted. Raises RunFault."""
        command = self._java(
            "kafka.tools.StorageTool", "format", "-t", cluster, "-c", str(self._settings), "--ignore-formatted",
            *(a for n, p in self._users.items() for a in ("--add-scram", f"SCRAM-SHA-256=[name={n},password={p}]")),
        )  # fmt: skip
        found = subprocess.run(command, capture_output=True, text=True)
        if found.returncode:
            raise RunFault(f"Kafka cannot format {self.directory}: {(found.stdout + found.stderr).strip()[-400:]}")

    def start(self, wait: bool = True) -> None:
        """Start the broker; with ``wait``, until it accepts connections. Raises LogUnavailable with the end of its output if it does not."""
        self.format()
        guard = [sys.executable, "-m", "broker.kafka.guard"]
        with (self.directory / "server.out").open("ab") as out:
            self._process = subprocess.Popen(
                [*guard, *self._java(*self._exporter(), "kafka.Kafka", str(self._settings))], stdout=out, stderr=out, stdin=subprocess.DEVNULL,
                start_new_session=True, env={**os.environ, PARENT: str(os.getpid()), "LOG_DIR": str(self.directory)},
                cwd=Path(__file__).resolve().parents[2],
            )  # fmt: skip
        if wait:
            self.wait()

    def wait(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + START_SECONDS
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1.0):
                return
            if self._process.poll() is not None or time.monotonic() > deadline:
                said = (self.directory / "server.out").read_text(errors="replace").strip()[-800:]
                raise LogUnavailable(f"Kafka did not start on {self.address}: {said}")
            time.sleep(0.1)

    def kill(self) -> None:
        """SIGKILL, like a crash."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        self._process.send_signal(number)
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None


def cluster(directory: Path, brokers: int = 3) -> list[KafkaServer]:
    """Several brokers that know each other, started."""
    numbers = free_ports(2 * brokers)
    ports = list(zip(numbers[::2], numbers[1::2], strict=True))
    servers = [KafkaServer(directory / f"broker-{i}", ports, i) for i in range(1, brokers + 1)]
    for server in servers:
        server.start(wait=False)
    for server in servers:
        server.wait()
    return servers


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="headrace kafka", description="one Kafka broker in the foreground")
    parser.add_argument("directory", type=Path, nargs="?", default=Path("runs/kafka"))
    parser.add_argument("--port", type=int, default=9092)
    options = parser.parse_args(argv)
    stop = Stop().install()
    print("Kafka: the first start fetches it with Maven", flush=True)
    try:
        server = KafkaServer(options.directory.resolve(), [(options.port, free_ports(1)[0])])
        server.start()
    except (RunFault, LogUnavailable) as error:
        print(f"headrace: {error}", file=sys.stderr)
        return 3
    print(
        f'Kafka listens on {server.address}; in the run file: [broker] url = "{server.url}". Its metrics are on '
        f"{server.metrics} ([monitoring] targets). Ctrl-C stops it.",
        flush=True,
    )
    while not stop.wait(0.5) and server.pid:
        if server._process is not None and server._process.poll() is not None:
            print("headrace: Kafka has ended by itself", file=sys.stderr)
            return 3
    server.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
