"""The exporter over HTTP, with clients that behave and clients that do not."""

from __future__ import annotations

import http.client
import socket

import pytest
from patience import HANG
from prometheus_client import CollectorRegistry, Counter

from monitoring.exporter import Exporter


def get(address: str, path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection(address, timeout=HANG)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def test_metrics_and_health_are_served_on_a_free_loopback_port() -> None:
    registry, state = CollectorRegistry(), [""]
    Counter("headrace_x", "x", registry=registry).inc(3)
    exporter = Exporter(registry, healthy=lambda: state[0])
    try:
        assert exporter.address.startswith("127.0.0.1:") and not exporter.address.endswith(":0")
        status, body = get(exporter.address, "/metrics?name=x")
        assert status == 200 and "headrace_x_total 3.0" in body and "process_cpu_seconds_total" in body
        assert get(exporter.address, "/healthz") == (200, "ok\n")
        state[0] = "the log is away"
        assert get(exporter.address, "/healthz") == (503, "the log is away\n")
        assert get(exporter.address, "/../etc/passwd")[0] == 404
    finally:
        exporter.close()
        exporter.close()
    with pytest.raises(OSError):
        get(exporter.address, "/healthz")


def test_a_health_check_or_a_page_that_fails_is_an_answer() -> None:
    def broken() -> str:
        raise RuntimeError("no log \ud800")

    exporter = Exporter(CollectorRegistry(), healthy=broken, pages={"/page": broken})
    try:
        for path, code in (("/healthz", 503), ("/page", 500)):
            status, body = get(exporter.address, path)
            assert status == code and "RuntimeError: no log" in body
    finally:
        exporter.close()


def test_clients_that_hang_or_talk_nonsense_hold_up_nobody(capsys: pytest.CaptureFixture[str]) -> None:
    exporter = Exporter(CollectorRegistry())
    host, port = exporter.address.split(":")
    try:
        with socket.create_connection((host, int(port))) as silent, socket.create_connection((host, int(port))) as loud:
            loud.sendall(b"\x00\xff\r\n\r\n")
            silent.sendall(b"GET /metr")
            assert get(exporter.address, "/healthz")[0] == 200
    finally:
        exporter.close()
    assert "Traceback" not in capsys.readouterr().err


def test_a_taken_port_is_named_and_a_registry_serves_twice() -> None:
    registry = CollectorRegistry()
    first = Exporter(registry)
    port = int(first.address.split(":")[1])
    try:
        with pytest.raises(OSError, match=rf"127\.0\.0\.1:{port} .*in use.*0 takes any free port"):
            Exporter(registry, port=port)
    finally:
        first.close()
    second = Exporter(registry)
    try:
        assert "process_cpu_seconds_total" in get(second.address, "/metrics")[1]
    finally:
        second.close()
