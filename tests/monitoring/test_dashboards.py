"""The dashboards: as the code makes them, valid by Grafana's own types, every query answered by a real Prometheus on a real run."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import yaml
from patience import HANG, until
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.parser import text_string_to_metric_families
from ringtools import by_role, end_run, start_run

from monitoring.dashboards.__main__ import HERE, texts
from monitoring.metrics import ActorMetrics, BrokerMetrics, LearnerMetrics, RewarderMetrics, RunMetrics, SystemMetrics
from monitoring.prometheus import Prometheus, configuration, programs

TESTS = Path(__file__).resolve().parent
SCHEMA = TESTS / "grafana_schema"
RECORDED = [TESTS / "sglang_metrics_first.txt", TESTS / "sglang_metrics_second.txt"]
METRIC = re.compile(r"\b(?:headrace_|sglang:|process_)\w+")
VALUES = {"$run": "small", "$host": ".*", "$__rate_interval": "15s"}
NAMES = [path.stem for path in sorted(HERE.glob("*.json"))]


def load(name: str) -> dict[str, Any]:
    return dict(json.loads((HERE / f"{name}.json").read_text()))


def panels(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def variables(dashboard: dict[str, Any]) -> list[str]:
    return [v["query"]["query"] for v in dashboard["templating"]["list"] if v["type"] == "query"]


def exported() -> set[str]:
    """Names of all series that daemons export, and those that the recorded SGLang server does."""
    registry = CollectorRegistry()
    for kind in (RunMetrics, ActorMetrics, BrokerMetrics):
        kind(registry)
    RewarderMetrics(registry, "x"), SystemMetrics(registry, "x"), ProcessCollector(registry=registry)
    learner = CollectorRegistry()
    LearnerMetrics(learner)
    families = [*registry.collect(), *learner.collect()]
    for path in RECORDED:
        families += text_string_to_metric_families(path.read_text())
    endings = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}
    return {family.name + ending for family in families for ending in endings.get(family.type, ("",))}


def test_panels_name_metrics_by_their_rows() -> None:
    """A metric that is renamed or gone is an error where the panel is made, not a panel that shows nothing."""
    for path in HERE.glob("*.py"):
        named = re.findall(r"headrace_\w+", path.read_text())
        assert not named, f"{path.name} names {named[0]} by its text"


def test_the_files_are_what_the_code_makes() -> None:
    made = texts()
    assert {path.name for path in HERE.glob("*.json")} == made.keys()
    for name, text in made.items():
        assert (HERE / name).read_text() == text, f"{name} is not up to date: python -m monitoring.dashboards"


@pytest.mark.parametrize("name", NAMES)
def test_every_panel_says_what_it_shows_and_what_to_do(name: str) -> None:
    dashboard, known = load(name), exported()
    for panel in panels(dashboard):
        title = f"{name}: {panel['title']}"
        assert panel["title"] and panel["fieldConfig"]["defaults"]["unit"], title
        assert len(panel["description"]) >= 40, f"{title}: say what a bad value means and what to do"
        assert panel["targets"] and len({t["refId"] for t in panel["targets"]}) == len(panel["targets"]), title
        for target in panel["targets"]:
            found = METRIC.findall(target["expr"])
            assert found and set(found) <= known, f"{title}: {set(found) - known} is not exported"


@pytest.mark.parametrize("name", NAMES)
def test_every_query_is_of_the_chosen_run(name: str) -> None:
    dashboard = load(name)
    asked = [t["expr"] for panel in panels(dashboard) for t in panel["targets"]]
    asked += [mark["expr"] for mark in dashboard["annotations"]["list"]]
    for expression in asked:
        filters = re.findall(r"(?:\b(?:headrace_|sglang:|process_)\w+|\bup\b)({[^}]*})?", expression)
        assert filters and all('run=~"$run"' in f and "host=~" in f for f in filters), expression
        assert re.findall(r"\[(.*?)\]", expression) in ([], ["$__rate_interval"] * expression.count("[")), expression


def test_dashboards_are_told_apart_and_linked() -> None:
    found = [load(name) for name in NAMES]
    assert len(found) == 6 == len({d["uid"] for d in found}) == len({d["title"] for d in found})
    for dashboard in found:
        assert dashboard["tags"] == dashboard["links"][0]["tags"] and dashboard["links"][0]["includeVars"]
        assert (dashboard["refresh"], dashboard["time"]["from"]) == ("10s", "now-1h")
        assert len(dashboard["annotations"]["list"]) == 3 and len(variables(dashboard)) == 2


@pytest.mark.parametrize("name", NAMES)
def test_ids_are_unique_and_panels_do_not_overlap(name: str) -> None:
    found = load(name)["panels"]
    assert [panel["id"] for panel in found] == list(range(1, len(found) + 1))
    taken: dict[tuple[int, int], str] = {}
    for panel in found:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24, panel["title"]
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert (x, y) not in taken, f"{panel['title']} lies on {taken[x, y]}"
                taken[x, y] = panel["title"]


def schema_packages() -> Path:
    """The folder with Grafana's types and a TypeScript compiler: installed beside the environment on the first call."""
    home = Path(sys.prefix) / "grafana-schema"
    lock = (SCHEMA / "package-lock.json").read_bytes()
    if (home / "node_modules").is_dir() and (home / "package-lock.json").read_bytes() == lock:
        return home / "node_modules"
    npm = shutil.which("npm")
    assert npm, "the dashboards are checked with Grafana's own types: install npm and node (apt install npm)"
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    for file in ("package.json", "package-lock.json"):
        shutil.copy(SCHEMA / file, home)
    done = subprocess.run(
        [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"],
        cwd=home,
        capture_output=True,
        text=True,
        timeout=HANG,
    )
    if done.returncode:
        shutil.rmtree(home)
        pytest.fail(f"npm could not install Grafana's types (needed once, with a network): {done.stderr[-1000:]}")
    return home / "node_modules"


def complaints(directory: Path, dashboards: dict[str, str]) -> list[str]:
    """What TypeScript has to say on dashboards, given as JSON by name, when they are declared to be Grafana's."""
    modules = schema_packages()
    for file in ("types.ts", "tsconfig.json"):
        shutil.copy(SCHEMA / file, directory)
    (directory / "node_modules").symlink_to(modules)
    for name, text in dashboards.items():
        code = f'import type {{ Dashboard }} from "./types";\nexport const dashboard: Dashboard = {text};\n'
        (directory / f"{name}.ts").write_text(code)
    done = subprocess.run(
        ["node", modules / "typescript" / "bin" / "tsc", "--project", "."],
        cwd=directory, capture_output=True, text=True, timeout=HANG,
    )  # fmt: skip
    return done.stdout.splitlines()


@pytest.mark.watch
def test_the_dashboards_are_valid_by_grafanas_own_types(tmp_path: Path) -> None:
    assert complaints(tmp_path, {name: (HERE / f"{name}.json").read_text() for name in NAMES}) == []


@pytest.mark.watch
def test_grafanas_types_find_what_is_wrong(tmp_path: Path) -> None:
    text = (HERE / "ring.json").read_text()
    wrong = {
        "mode": text.replace('"mode": "dashed"', '"mode": "dotted"'),
        "key": text.replace('"iconColor"', '"iconColour"'),
        "number": text.replace('"graphTooltip": 1', '"graphTooltip": 7'),
        "option": text.replace('"graphMode": "area"', '"graphMode": true'),
        "kind": text.replace('"type": "stat"', '"type": "statistic"'),
    }
    found = complaints(tmp_path, wrong)
    assert {line.partition(".ts")[0] for line in found if "error TS" in line} == wrong.keys()


@pytest.mark.watch
def test_what_people_start_listens_on_this_machine_only_and_watches_as_the_tests_do(tmp_path: Path) -> None:
    monitoring = HERE.parent
    services = yaml.safe_load((monitoring / "compose.yaml").read_text())["services"]
    assert services.keys() == {"prometheus", "grafana", "alertmanager"}
    assert all(re.fullmatch(r"\S+:v?\d+\.\d+\.\d+", service["image"]) for service in services.values())
    for service in services.values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            assert not source.startswith("./") or source == "./alerts.yaml" or (monitoring / source).exists(), volume
    assert "--web.listen-address=127.0.0.1:9090" in services["prometheus"]["command"]
    assert services["grafana"]["environment"]["GF_SERVER_HTTP_ADDR"] == "127.0.0.1"

    text = (monitoring / "provisioning" / "prometheus.yml").read_text()
    theirs, ours = yaml.safe_load(text)["scrape_configs"], yaml.safe_load(configuration([Path("x")]))["scrape_configs"]
    for section in (*theirs, *ours):
        del section["file_sd_configs"][0]["files"]
    assert theirs == ours, "the same labels as the tests' Prometheus gives"
    (tmp_path / "alerts.yaml").write_text("groups: []\n")
    (tmp_path / "prometheus.yml").write_text(text.replace("/etc/prometheus", str(tmp_path)))
    done = subprocess.run(
        [programs() / "promtool", "check", "config", tmp_path / "prometheus.yml"], capture_output=True
    )
    assert done.returncode == 0, done.stderr


@contextmanager
def recorded_server() -> Iterator[str]:
    """Serves what an SGLang server exported, one recording after the other: what it counted grows between the two."""
    recordings = cycle([path.read_bytes() for path in RECORDED])

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = next(recordings)
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Scrapes are no news."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Question:
    """A query of a dashboard: ``labels`` are those that its legend names; ``event`` if it is to have been positive."""

    def __init__(self, where: str, expression: str, legend: str = "", event: bool = False) -> None:
        for name, value in VALUES.items():
            expression = expression.replace(name, value)
        self.where, self.expression, self.event = where, expression, event
        self.labels = set(re.findall(r"{{(\w+)}}", legend))

    def answered(self, server: Prometheus) -> bool:
        """Whether there is a number now, and the labels that name it."""
        found = [
            float(sample["value"][1])
            for sample in server.query(self.expression)
            if self.labels <= sample["metric"].keys()
        ]
        return any(value > 0 if self.event else not math.isnan(value) for value in found)


def questions() -> Iterable[Question]:
    for name in NAMES:
        dashboard = load(name)
        for panel in panels(dashboard):
            for target in panel["targets"]:
                yield Question(f"{name}: {panel['title']}", target["expr"], target["legendFormat"])
        for mark in dashboard["annotations"]["list"]:
            yield Question(f"{name}: {mark['name']}", mark["expr"], event=True)


def choices(server: Prometheus, query: str) -> list[str]:
    """What a variable offers: ``label_values(METRIC, LABEL)``, as Grafana asks for it."""
    found = re.fullmatch(r"label_values\((.*), (\w+)\)", query)
    assert found, query
    return list(server.get(f"label/{found[2]}/values", **{"match[]": found[1].replace("$run", VALUES["$run"])}))


@pytest.mark.watch
def test_every_query_is_answered_on_a_real_run(tmp_path: Path) -> None:
    """An actor and a rewarder are killed on the way. The metrics of SGLang were recorded from a server of SGLang 0.5.23
    (on a CPU, tiny model), during and after a burst of requests."""
    home, open_ = tmp_path / "run", list(questions())
    run, server = start_run(home, "--set", "stage.1.steps=100000"), None
    with recorded_server() as address:
        labels = {"run": VALUES["$run"], "daemon": "actor-0.server", "role": "sglang", "host": "here"}
        (tmp_path / "sglang.json").write_text(json.dumps([{"targets": [address], "labels": labels}]))
        try:
            files = [home / "targets.json", tmp_path / "sglang.json"]
            server = watch = Prometheus(tmp_path / "watch", files, interval="1s")
            trained = 'headrace_groups_total{fate="trained"} > 0'
            until(lambda: watch.query(trained) or run.poll() is not None, "training")
            for role in ("actors", "rewarders"):
                by_role(run, role)[0].kill()
            deadline = time.monotonic() + HANG
            while open_ and time.monotonic() < deadline:
                time.sleep(1.0)
                open_ = [question for question in open_ if not question.answered(server)]
            empty = "\n".join(f"{q.where}: {q.expression}" for q in open_)
            assert not open_, f"{empty}\n{(home / 'run.out').read_text()[-2000:]}"
            assert run.poll() is None
            check_expositions(home)
            for query in variables(load("ring")):
                assert choices(server, query), query
        finally:
            end_run(run)
            if server is not None:
                server.stop()


def check_expositions(home: Path) -> None:
    """promtool finds nothing in what the run's own daemons expose."""
    for target in json.loads((home / "targets.json").read_text()):
        with urllib.request.urlopen(f"http://{target['targets'][0]}/metrics", timeout=HANG) as answer:
            text = answer.read().decode()
        done = subprocess.run([programs() / "promtool", "check", "metrics"], input=text, capture_output=True, text=True)
        complaints = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("headrace_")]
        assert not complaints, complaints
