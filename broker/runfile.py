"""Reads a run file: one TOML table per package; unknown keys are refused, with the nearest known one.

Each package brings the model of its own table; this module joins them, applies ``--set table.key=value`` and turns every
mistake into one line that names table, key, value and the fix.
"""

from __future__ import annotations

import datetime
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from broker.errors import RunFileError
from broker.spelling import nearest

TABLES = ("run", "broker", "data", "actors", "environments", "rewarders", "learner", "stage", "monitoring")
Model = TypeVar("Model", bound=BaseModel)


class Table(BaseModel):
    """Base of every table: frozen; unknown keys and the numbers ``nan`` and ``inf`` are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class RunTable(Table):
    """``[run]``: what the run is. ``rewards`` is the mix that every prompt carries: weight by rewarder name. ``cutoff`` is the day from
    which on the model has seen no text (``"2024-07-01"``): it may know anything published before (``[data.NAME] select.fresh``)."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=80)
    model: str
    seed: int = 0
    rewards: dict[str, float] = {}
    cutoff: str = ""

    @field_validator("cutoff", mode="before")
    @classmethod
    def _day(cls, cutoff: object) -> object:
        if cutoff != "":
            try:
                datetime.date.fromisoformat(cutoff)  # type: ignore[arg-type]
            except (TypeError, ValueError):
                raise ValueError('write it as a text of the form "YYYY-MM-DD"') from None
        return cutoff


class BrokerTable(Table):
    """``[broker]``: the log. ``url`` empty means the embedded log in the run's own directory. ``control`` is where the
    learner's control road listens (``tcp://host:port``; port 0 takes a free one, which daemons find through the log): the
    address under which actors reach the learner's machine. Beyond the loopback it needs ``keys``, the file that
    ``headrace keys FILE`` makes, on every machine. ``engines`` are logs of your own, by the scheme of their URLs:
    ``{ memory = "mine.py:MemoryLog" }``."""

    url: str = ""
    engines: dict[str, str] = {}
    partitions: int = Field(default=8, ge=1, le=4096)
    retention_hours: float = Field(default=0.0, ge=0)
    control: str = "tcp://127.0.0.1:0"
    keys: str = ""

    @field_validator("control")
    @classmethod
    def _address(cls, control: str) -> str:
        parts = urlsplit(control)
        if parts.scheme != "tcp" or not parts.hostname or parts.port is None:
            raise ValueError("use tcp://HOST:PORT (port 0 takes a free one)")
        if parts.hostname in ("0.0.0.0", "::", "*"):
            raise ValueError("name the one address under which the actors reach this machine")
        return control


class MonitoringTable(Table):
    """``[monitoring]``: ``host`` is the address on which daemons serve their metrics (without authentication: keep it on a
    network that you trust; ``0.0.0.0`` is all of a machine's, which is then scraped by its name); ``targets`` are further things to scrape beside the run, by name (``kafka = "10.0.0.9:7071"``);
    ``alerts`` may name a file of alerting rules that replaces the project's."""

    host: str = "127.0.0.1"
    targets: dict[str, str] = {}
    alerts: str = ""


class RunFile:
    """The raw tables of a run file with the overrides applied, and the directory that relative paths start from."""

    def __init__(self, tables: Mapping[str, Any], base: Path, path: Path, overrides: Sequence[str] = ()) -> None:
        self.tables = dict(tables)
        self.base = base
        self.path = path
        self.overrides = tuple(overrides)
        self._read_at = _stamp(path)

    @classmethod
    def read(cls, path: Path, overrides: Sequence[str] = ()) -> RunFile:
        """Raises RunFileError if the file is missing, is no TOML, has an unknown table, or an override is malformed."""
        try:
            tables = tomllib.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise RunFileError(f"run file {str(path)!r} does not exist") from None
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise RunFileError(f"run file {str(path)!r} cannot be read: {error}") from None
        for name in tables:
            if name not in TABLES:
                raise RunFileError(f"{path}: unknown table [{name}]{nearest(name, TABLES)}")
        for override in overrides:
            apply_override(tables, override)
        moved = path.with_suffix(".base")  # a run file that was copied into a run's directory says where it came from
        base = Path(moved.read_text(encoding="utf-8")) if moved.is_file() else path.resolve().parent
        return cls(tables, base, path, overrides)

    def reread(self) -> RunFile | None:
        """The run file read again if it has changed; else None. Raises RunFileError, once for each edit."""
        stamp = _stamp(self.path)
        if stamp == self._read_at:
            return None
        self._read_at = stamp
        return RunFile.read(self.path, self.overrides)

    def table(self, name: str, model: type[Model]) -> Model:
        """Table ``name`` as ``model``; an absent table has all defaults. Raises RunFileError."""
        return parse(self.tables.get(name, {}), model, f"[{name}]")

    def resolve(self, path: str) -> Path:
        """``path`` of the run file: relative ones start from the run file's own directory."""
        return (self.base / path).resolve()


def _stamp(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError:
        return 0, 0
    return found.st_mtime_ns, found.st_ino


def parse(raw: Any, model: type[Model], where: str) -> Model:
    """``raw`` as ``model``. Raises RunFileError with one line on the first mistake; ``where`` names the table."""
    if not isinstance(raw, dict):
        raise RunFileError(f"{where} must be a table, not {raw!r}")
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        place = [str(p) for p in first["loc"]]
        key = ".".join(place)
        if first["type"] == "extra_forbidden":
            known = _fields(model, place[:-1])
            raise RunFileError(f"{where} unknown key {key!r}{nearest(place[-1], known)}") from None
        if first["type"] == "missing":
            raise RunFileError(f"{where} {key} is missing") from None
        message = first["msg"].removeprefix("Value error, ")
        if not key:  # of several keys together: it names them
            raise RunFileError(f"{where} {message}") from None
        raise RunFileError(f"{where} {key} = {first['input']!r}: {message[:1].lower()}{message[1:]}") from None


def apply_override(tables: dict[str, Any], override: str) -> None:
    """Apply ``table.key=value`` in place; the value is TOML, or a bare word. ``stage.NUMBER.key`` reaches a stage."""
    path, sign, text = override.partition("=")
    keys = path.strip().split(".")
    if not sign or len(keys) < 2 or not all(keys):
        raise RunFileError(f"--set {override!r}: use table.key=value")
    if keys[0] not in TABLES:
        raise RunFileError(f"--set {override!r}: unknown table [{keys[0]}]{nearest(keys[0], TABLES)}")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    here: Any = tables
    for key in keys[:-1]:
        if isinstance(here, list):
            if not key.isdigit() or int(key) >= len(here):
                raise RunFileError(f"--set {override!r}: stage {key!r} is not one of 0..{len(here) - 1}")
            here = here[int(key)]
        else:
            here = here.setdefault(key, {})
        if not isinstance(here, dict | list):
            raise RunFileError(f"--set {override!r}: {key!r} is not a table")
    if not isinstance(here, dict):
        raise RunFileError(f"--set {override!r}: name a key of the stage")
    here[keys[-1]] = value


def _fields(model: type[BaseModel], path: Sequence[str]) -> list[str]:
    """The field names of the model reached from ``model`` by ``path``, if known."""
    here: Any = model
    for name in path:
        field = here.model_fields.get(name) if isinstance(here, type) and issubclass(here, BaseModel) else None
        kinds = (field.annotation, *get_args(field.annotation)) if field else ()
        here = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
    return list(here.model_fields) if isinstance(here, type) and issubclass(here, BaseModel) else []
