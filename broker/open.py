"""Opens the log that a URL names: its scheme selects the engine; a run file may add engines of its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

from broker import plugins
from broker.errors import RunFileError
from broker.log import Log
from broker.spelling import nearest

ENGINES = {"sqlite": "broker.sqlite.log:SqliteLog", "kafka": "broker.kafka.log:KafkaLog"}
"""The engine of each scheme: a class with ``from_url(url) -> Log``."""


def engine_of(url: str, engines: Mapping[str, str] | None = None) -> str:
    """``module:Class`` of the engine. Raises RunFileError for an unknown scheme."""
    known = {**ENGINES, **(engines or {})}
    scheme = urlsplit(url).scheme
    if scheme not in known:
        raise RunFileError(
            f"[broker] url = {url!r}: unknown scheme {scheme!r}{nearest(scheme, list(known))}; "
            "use sqlite://DIRECTORY or kafka://HOST:PORT, or name an engine of yours in [broker] engines"
        )
    return known[scheme]


def open_log(url: str, engines: Mapping[str, str] | None = None, base: Path = Path()) -> Log:
    """The log at ``url``. ``engines`` are those of the run file in ``base``, by scheme.

    Raises RunFileError for a scheme or an option nobody knows, LogUnavailable if the log cannot be reached.
    """
    use = engine_of(url, engines)
    try:
        engine = plugins.load(use, base, "[broker]")
    except RunFileError as error:
        if isinstance(missing := error.__cause__, ModuleNotFoundError) and missing.name == "kafka":
            raise RunFileError(
                f"[broker] url = {url!r} needs {missing.name}, which is not installed: pip install 'headrace[kafka]'"
            ) from None
        raise
    return cast(Log, engine.from_url(url))
