"""Log lines of a daemon: readable on a terminal, JSON elsewhere, and always into RUN/logs."""

from __future__ import annotations

import json
import logging
import sys
import time
from pathlib import Path

EXTRAS = ("step", "group")


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, run, daemon, message, and step or group where they are given."""

    def __init__(self, run: str, daemon: str) -> None:
        super().__init__()
        self._run, self._daemon = run, daemon

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "run": self._run,
            "daemon": self._daemon,
            "message": record.getMessage(),
        }
        line.update((name, getattr(record, name)) for name in EXTRAS if hasattr(record, name))
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def setup_logging(role: str, name: str, run: str, directory: Path, level: int = logging.INFO) -> None:
    """Send this process's log lines to ``directory/logs/NAME.jsonl``, and to stderr when a person looks on."""
    path = directory / "logs" / f"{name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    to_file = logging.FileHandler(path, encoding="utf-8")
    to_file.setFormatter(JsonFormatter(run, name))
    handlers: list[logging.Handler] = [to_file]
    to_people = logging.StreamHandler(sys.stderr)
    to_people.setFormatter(logging.Formatter(f"%(asctime)s {role} %(levelname)s %(message)s", "%H:%M:%S"))
    handlers.append(to_people)
    logging.basicConfig(level=level, handlers=handlers, force=True)
