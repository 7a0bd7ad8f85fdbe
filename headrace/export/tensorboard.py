"""TensorBoard: one event file, written with TensorBoard's own writer (neither torch nor TensorFlow is loaded)."""

from __future__ import annotations

import time as clock
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # type: ignore[import-untyped]
from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]
from tensorboard.plugins.text.summary_v2 import text_pb  # type: ignore[import-untyped]
from tensorboard.summary.writer.event_file_writer import EventFileWriter  # type: ignore[import-untyped]

FLUSH_SECONDS = 2.0


class TensorBoardSink:
    def __init__(self, directory: Path) -> None:
        self._writer = EventFileWriter(str(directory), max_queue_size=1000, flush_secs=FLUSH_SECONDS)
        # a TensorBoard that has shown what lay here before forgets it
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


def open_sink(directory: Path, run: str, config: Mapping[str, Any]) -> TensorBoardSink:
    return TensorBoardSink(directory)
