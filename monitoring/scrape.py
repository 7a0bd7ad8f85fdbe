"""Reads another process's metrics: what the live view is made of."""

from __future__ import annotations

import http.client
import urllib.error
import urllib.request

from prometheus_client.parser import text_string_to_metric_families


def scrape(address: str, timeout: float = 0.5) -> dict[str, float]:
    """Every sample at ``http://ADDRESS/metrics`` by ``name`` or ``name{label=value,...}``; empty if nobody answers."""
    try:
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=timeout) as answer:
            text = answer.read().decode()
    except (urllib.error.URLError, http.client.HTTPException, OSError, ValueError):
        return {}
    return samples(text)


def samples(text: str) -> dict[str, float]:
    """Every sample of an exposition by ``name`` or ``name{label=value,...}``."""
    out: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f"{k}={v}" for k, v in sorted(sample.labels.items()))
            out[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return out
