"""Records on their way to the log: those that it does not take come later, once each and in order."""

from __future__ import annotations

from pathlib import Path

import pytest
from awaylog import Away

from broker.errors import LogUnavailable, RecordTooLarge
from broker.log import TopicSpec
from broker.open import open_log
from broker.outbox import Outbox
from broker.sqlite.log import MAX_RECORD_BYTES


def test_what_the_log_does_not_take_is_sent_by_a_later_flush(tmp_path: Path) -> None:
    log = open_log(f"sqlite://{tmp_path}/log")
    log.create([TopicSpec("t")])
    box = Outbox(Away(log.producer(), sends=2, flushes=1))
    for value in (b"0", b"1", b"2"):
        box.send("t", b"k", value)
    for _ in range(2):  # one more send fails, then the flush itself
        with pytest.raises(LogUnavailable):
            box.flush()
        assert box.pending
    box.flush()
    box.flush()
    assert not box.pending and [r.value for r in log.reader("t").poll()] == [b"0", b"1", b"2"]
    with pytest.raises(RecordTooLarge, match="t; at most"):
        box.send("t", b"k", bytes(MAX_RECORD_BYTES + 1))
    assert not box.pending
    box.close()
    log.close()
