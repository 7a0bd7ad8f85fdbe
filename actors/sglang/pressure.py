"""Looks at SGLang servers every second while somebody wants to know how hard they are pressed.

What waits and what the cache holds they say at ``/v1/loads``; what was taken back for want of room is a counter at ``/metrics``, for servers
that have ``--enable-metrics`` (which those have that the project starts). An update of the weights takes nothing back in this sense.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import httpx

from actors.slots import Pressure

LOOK_SECONDS = 1.0
RETRACTED = "sglang:num_retracted_requests_total"


class PressureWatch:
    """A thread that ends with ``closed``."""

    def __init__(self, urls: Sequence[str], closed: threading.Event) -> None:
        self._seen: dict[str, Pressure] = {}
        self._urls, self._closed = tuple(urls), closed
        threading.Thread(target=self._run, name="pressure", daemon=True).start()

    def worst(self) -> Pressure:
        """What waits and is full where it is most, all that was taken back, and the fewest that can run at once."""
        seen = list(self._seen.values())
        most = [p.most for p in seen if p.most]
        return Pressure(
            max((p.waiting for p in seen), default=0),
            max((p.usage for p in seen), default=0.0),
            sum(p.retracted for p in seen),
            min(most, default=0),
        )

    def _run(self) -> None:
        with httpx.Client(timeout=LOOK_SECONDS) as http:
            while not self._closed.is_set():
                for url in self._urls:
                    found = look(http, url, self._seen.get(url, Pressure()))
                    if found is not None:  # else it is away, or its weights are being changed
                        self._seen[url] = found
                self._closed.wait(LOOK_SECONDS)


def look(http: httpx.Client, url: str, before: Pressure) -> Pressure | None:
    """What a server says now; None if it does not answer."""
    try:
        loads = http.get(f"{url}/v1/loads", params={"include": "core"}).raise_for_status().json()["loads"]
        metrics = http.get(f"{url}/metrics")
        ranks = [(int(r["num_waiting_reqs"]), float(r["token_usage"]), int(r["max_running_requests"])) for r in loads]
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        return None
    retracted = counted(metrics.text) if metrics.status_code == httpx.codes.OK else before.retracted
    return Pressure(
        sum(waiting for waiting, _, _ in ranks),
        max((usage for _, usage, _ in ranks), default=0.0),
        max(retracted, before.retracted),  # a server that was started again counts anew
        sum(most for _, _, most in ranks),
    )


def counted(exposition: str) -> int:
    """The samples that were taken back, of all ranks, in a page of metrics."""
    lines = (line for line in exposition.splitlines() if line.startswith(RETRACTED))
    return sum(int(float(line.rpartition(" ")[2])) for line in lines)
