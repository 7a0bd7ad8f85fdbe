"""Log lines of a daemon: always as JSON into RUN/logs; on stderr readable for people, as JSON for a machine's log collector."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from pathlib import Path

from monitoring.daemon import PARENT

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
    """Send this process's log lines to ``directory/logs/NAME.jsonl`` and to stderr.

    On stderr they are text on a terminal, and below a supervisor, which has the JSON in the file beside; else JSON.
    """
    path = directory / "logs" / f"{name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    to_file = logging.FileHandler(path, encoding="utf-8")
    to_file.setFormatter(JsonFormatter(run, name))
    handlers: list[logging.Handler] = [to_file]
    to_stderr = logging.StreamHandler(sys.stderr)
    people = sys.stderr.isatty() or bool(os.environ.get(PARENT))
    text = logging.Formatter(f"%(asctime)s {role} %(levelname)s %(message)s", "%H:%M:%S")
    to_stderr.setFormatter(text if people else JsonFormatter(run, name))
    handlers.append(to_stderr)
    logging.basicConfig(level=level, handlers=handlers, force=True)
