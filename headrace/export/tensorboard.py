"""TensorBoard: one event file, written with TensorBoard's own writer (neither torch nor TensorFlow is loaded)."""

from __future__ import annotations

import time as clock
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # type: ignore[import-untyped]
from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]
from tensorboard.plugins.text.summary_v2 import text_pb  # type: ignore[import-untyped]
from tensorboard.summary.writer.event_file_writer import EventFileWriter  # type: ignore[import-untyped]


class TensorBoardSink:
    """Goes on with the event files of the directory; without any, a TensorBoard that has shown what lay here before forgets it."""

    def __init__(self, directory: Path, flush_seconds: float) -> None:
        fresh = not any(directory.glob("events.out.tfevents.*"))
        self._writer = EventFileWriter(str(directory), max_queue_size=1000, flush_secs=flush_seconds)
        if fresh:
            start = SessionLog(status=SessionLog.START)
            self._writer.add_event(Event(wall_time=clock.time(), step=0, session_log=start))

    def scalars(self, step: int, values: Mapping[str, float], time: float) -> None:
        with np.errstate(over="ignore"):  # the format has 32 bits: what is too large for them is infinite
            kept = [Summary.Value(tag=tag, simple_value=np.float32(value)) for tag, value in values.items()]
        self._writer.add_event(Event(wall_time=time, step=step, summary=Summary(value=kept)))

    def text(self, name: str, text: str) -> None:
        shown = "\n".join(f"    {line}" for line in text.splitlines())  # Markdown: a block of code
        self._writer.add_event(Event(wall_time=clock.time(), step=0, summary=text_pb(f"text/{name}", shown)))

    def close(self) -> None:
        self._writer.close()


@dataclass(frozen=True)
class TensorBoard:
    """Curves for TensorBoard. What is buffered is written every ``flush_seconds``."""

    appends: ClassVar[bool] = True  # TensorBoard reads all event files of a directory
    flush_seconds: float = 2.0

    def open(self, directory: Path, run: str, config: Mapping[str, Any]) -> TensorBoardSink:
        return TensorBoardSink(directory, self.flush_seconds)
