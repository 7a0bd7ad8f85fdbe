"""What the daemons of a real run must export: every declared metric, alive where something has happened."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import NamedTuple

from patience import HANG
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from monitoring.metrics import ROLES
from monitoring.scrape import samples

QUIET = {row.family for kinds in ROLES.values() for kind in kinds for _, row in kind.rows() if row.may_be_zero}
"""What may be absent or zero in a sound run on a CPU: the rows that say why."""
BUBBLE = 0.99


def declared(role: str) -> set[str]:
    """Names of the metric families of a role (counters without ``_total``)."""
    return {row.family for kind in ROLES[role] for _, row in kind.rows()}


def exposition(address: str) -> str:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=HANG) as answer:
        return str(answer.read().decode())


def is_alive(family: Metric) -> bool:
    """Whether something was counted: a histogram by its count."""
    names = ("_count",) if family.type == "histogram" else ("_total", "")
    return any(s.value != 0 for s in family.samples if s.name in {family.name + n for n in names})


def missing_or_dead(role: str, families: Iterable[Metric], quiet: Collection[str] = ()) -> list[str]:
    found = {family.name: family for family in families}
    wanted = declared(role) - QUIET - set(quiet)
    return sorted(name for name in wanted if name not in found or not is_alive(found[name]))


def check_metrics(run: Path, quiet: Collection[str] = ()) -> dict[str, dict[str, float]]:
    """Scrape every daemon of the run: nothing missing or dead (but what is ``quiet`` in this run), all by convention, every second
    accounted for, few series. Returns what was scraped, by daemon."""
    targets = json.loads((run / "targets.json").read_text())
    check_time({t["labels"]["daemon"]: t["targets"][0] for t in targets if t["labels"]["role"] != "supervisor"})
    texts = {t["labels"]["daemon"]: (t["labels"]["role"], exposition(t["targets"][0])) for t in targets}
    assert {role for role, _ in texts.values()} == set(ROLES)
    for name, (role, text) in texts.items():
        families = list(text_string_to_metric_families(text))
        dead = missing_or_dead(role, families, quiet)
        assert not dead, f"{name}: {dead}"
        assert len(text.splitlines()) < 1000, f"{name} exports too many series"
    return {name: samples(text) for name, (_, text) in texts.items()}


def check_time(addresses: dict[str, str]) -> None:
    """Each daemon counts every second of a stretch of wall time once, as busy or as idle."""
    before = {name: counted(address) for name, address in addresses.items()}
    time.sleep(2.0)
    for name, address in addresses.items():
        then, now = before[name], counted(address)
        seconds = now.seconds - then.seconds
        least, most = now.asked - then.answered, now.answered - then.asked
        assert BUBBLE * least <= seconds <= most / BUBBLE, f"{name} counted {seconds} s of {least}..{most} s"


class Counted(NamedTuple):
    """Seconds that a daemon has counted, and when it was asked and had answered."""

    seconds: float
    asked: float
    answered: float


def counted(address: str) -> Counted:
    asked = time.monotonic()
    text = exposition(address)
    answered = time.monotonic()
    total = 0.0
    for family in text_string_to_metric_families(text):
        if family.name in ("headrace_idle_seconds", "headrace_busy_seconds"):
            total += sum(s.value for s in family.samples if s.name.endswith("_total"))
    return Counted(total, asked, answered)
