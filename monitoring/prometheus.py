"""Starts a real Prometheus on this machine, for people and for the tests: the installed one, or Debian's package.

It finds a run's daemons through the run's ``targets.json``, and listens on the loopback.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from monitoring.daemon import die_with_parent
from monitoring.ports import free_ports

PROGRAMS = ("prometheus", "promtool")
ALERTS = Path(__file__).with_name("alerts.yaml")
READY_SECONDS = 30.0
STOP_SECONDS = 10.0
SECTION = """\
global:
  scrape_interval: {interval}
  evaluation_interval: {interval}
rule_files: {rules}
scrape_configs:
  - job_name: headrace
    file_sd_configs:
      - files: {files}
        refresh_interval: 5s
    relabel_configs:
      - source_labels: [daemon]
        target_label: instance
"""


class PrometheusError(Exception):
    """Prometheus cannot be fetched, does not start, or rejects a query; the message contains its own text."""


def programs(home: Path | None = None) -> Path:
    """The directory that holds ``prometheus`` and ``promtool``: from the PATH, else Debian's, fetched to ``home`` on
    the first call.

    Raises PrometheusError if neither is available.
    """
    found = shutil.which("prometheus")
    if found and shutil.which("promtool"):
        return Path(found).parent
    home = home or Path(sys.prefix) / "prometheus"
    here = home / "usr" / "bin"
    if not all((here / name).exists() for name in PROGRAMS):
        _fetch(home)
    return here


def _fetch(home: Path) -> None:
    """Download Debian's package and unpack it in ``home``: nothing is installed system-wide, and root is not needed."""
    hint = "install Prometheus (apt install prometheus) so that prometheus and promtool are on the PATH"
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise PrometheusError(f"there is no {tool} to fetch Prometheus with: {hint}")
    home.mkdir(parents=True, exist_ok=True)
    download = ["apt-get", "download", "prometheus"]
    done = subprocess.run(download, cwd=home, capture_output=True, text=True)
    if done.returncode:  # the package lists may be missing or old
        subprocess.run(["apt-get", "-qq", "update"], capture_output=True)
        done = subprocess.run(download, cwd=home, capture_output=True, text=True)
    packages = sorted(home.glob("prometheus_*.deb"))
    if done.returncode or not packages:
        raise PrometheusError(f"Prometheus could not be fetched ({done.stderr.strip()[-300:]}): {hint}")
    subprocess.run(["dpkg-deb", "-x", packages[-1].name, "."], cwd=home, check=True, capture_output=True)


def configuration(files: Sequence[Path], rules: Sequence[Path] = (), interval: str = "5s") -> str:
    """A Prometheus configuration (YAML). ``files`` are the ``targets.json`` of runs; ``rules`` have recording and
    alerting rules.
    """
    return SECTION.format(
        interval=interval,
        files=json.dumps([str(path.resolve()) for path in files]),
        rules=json.dumps([str(path.resolve()) for path in rules]),
    )


class Prometheus:
    """One server, with its data in ``directory``; it ends with this process. ``port`` 0 takes a free one.

    The constructor waits until the server is ready. Raises PrometheusError if it does not start within
    ``READY_SECONDS``.
    """

    def __init__(
        self, directory: Path, files: Sequence[Path], rules: Sequence[Path] = (), interval: str = "5s", port: int = 0
    ) -> None:
        if port:
            _require_free(port)
        here = programs()
        directory.mkdir(parents=True, exist_ok=True)
        config, out = directory / "prometheus.yml", directory / "prometheus.out"
        config.write_text(configuration(files, rules, interval), encoding="utf-8")
        self.port = port or free_ports(1)[0]
        self.url = f"http://127.0.0.1:{self.port}"
        command = [
            str(here / "prometheus"), f"--config.file={config}", f"--storage.tsdb.path={directory / 'data'}",
            f"--web.listen-address=127.0.0.1:{self.port}", "--web.enable-lifecycle", "--storage.tsdb.retention.time=60d",
        ]  # fmt: skip
        with out.open("ab") as file:
            self._process = subprocess.Popen(
                command,
                stdout=file,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                preexec_fn=partial(die_with_parent, os.getpid()),
            )
        try:
            self._wait(out)
        except BaseException:
            self.stop()
            raise

    def _wait(self, out: Path) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while True:
            if self._process.poll() is not None or time.monotonic() > deadline:
                words = out.read_text(errors="replace").strip().splitlines()[-1:]
                raise PrometheusError(f"Prometheus did not start on port {self.port}: {' '.join(words)}")
            try:
                with urllib.request.urlopen(f"{self.url}/-/ready", timeout=1):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)

    def get(self, path: str, **parameters: str) -> Any:
        """The ``data`` of the HTTP API's answer at ``path`` (``query``, ``alerts``, ``targets`` ...). Raises
        PrometheusError.
        """
        question = f"?{urlencode(parameters)}" if parameters else ""
        try:
            with urllib.request.urlopen(f"{self.url}/api/v1/{path}{question}", timeout=10) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise PrometheusError(f"{path} {parameters}: {error.read().decode(errors='replace')[:500]}") from error
        except (urllib.error.URLError, OSError) as error:
            raise PrometheusError(f"{self.url} does not answer: {error}") from error

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The instant vector of ``expression``: each element has labels ``metric`` and ``value`` (time, text)."""
        result = self.get("query", query=expression)
        if result["resultType"] == "scalar":
            return [{"metric": {}, "value": result["result"]}]
        return list(result["result"])

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def wait(self) -> int:
        """Block until the server ends; returns its exit status."""
        return self._process.wait()

    def stop(self) -> None:
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


def _require_free(port: int) -> None:
    """Raises PrometheusError if ``port`` is in use: the server there would be mistaken for the one that we start."""
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except (OSError, OverflowError) as error:
        raise PrometheusError(f"port {port} is not available ({error}); 0 takes any free one") from error


def main() -> int:
    """Fetch Prometheus if it is missing; a failure is only printed."""
    try:
        programs()
    except PrometheusError as error:
        print(f"headrace: {error}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
