"""``kind = "rewrite"``: a model rewrites an earlier stage's answers to be readable, and if wanted people review them.

The result is an artefact of the stage's name, ``RUN/artefacts/NAME.jsonl``; each row names the sample that it was made
from, and its position in the log. This is the cold start of DeepSeek-R1 (arXiv 2501.12948, section 2.3.1).
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from broker import plugins
from broker.errors import DataError, Outage
from broker.messages import Artefact
from broker.patience import Seldom
from learner.buried import Buried, readable
from learner.data.files import Rows
from learner.rewriting.review import offer, read_reviewed, returned
from learner.rewriting.served import Rewriter
from learner.stages.stage import Stage
from learner.tables import MAX_ODD
from monitoring.files import replace

if TYPE_CHECKING:
    from learner.learner import Learner

log = logging.getLogger("learner")
SAID_SECONDS = 20.0  # interval of log messages while waiting
LOOK_SECONDS = 0.2
AGAIN_SECONDS = 5.0  # how long to wait before trying a row again if the server was unreachable


class RewriteStage(Stage):
    """Rewrites each row of ``data`` (``messages`` or ``prompt``, and ``response``), ``requests`` of them at a time.

    ``rewriter`` is a table with ``use`` and options, or only the options of ``learner.rewriting.served:Served``:
    ``{ url = "http://127.0.0.1:8000/v1", model = "NAME" }``. An interrupted stage continues with the rows that are not
    rewritten yet. Unreadable rows become dead letters, up to the share ``max_odd``.

    ``review`` is ``none``, ``wait`` or ``offer``. ``wait`` offers the rows to people in ``RUN/review/NAME.jsonl``, and
    waits until ``headrace review`` returns them, at most ``review_hours`` (0: no limit). ``offer`` offers them, but
    does not wait: it takes the reviewed rows if they are there already, else the rows as they are.
    """

    reads_rows: ClassVar[bool] = True
    data: str = "collected"
    rewriter: dict[str, Any] = Field(default_factory=dict)
    requests: int = Field(default=8, ge=1)
    review: Literal["none", "wait", "offer"] = "none"
    review_hours: float = Field(default=0.0, ge=0)
    max_odd: float = Field(default=MAX_ODD, ge=0, le=1)

    def sources(self) -> Mapping[str, str]:
        return {"data": self.data}

    @property
    def use(self) -> str:
        return str(self.rewriter.get("use", "learner.rewriting.served:Served"))

    @property
    def options(self) -> dict[str, Any]:
        return {key: value for key, value in self.rewriter.items() if key != "use"}

    def check(self, base: Path) -> None:
        plugins.check(self.use, self.options, base, f"[[stage]] {self.name} rewriter")

    def run(self, learner: Learner, index: int) -> bool:
        if learner.artefact(self.name) is not None:
            return True
        found = learner.sources.rows(self.data)
        graves = Buried(learner.run, index, learner.stop, learner.telemetry.log_away)
        with graves, learner.telemetry.phase("read"):
            kept = readable(found, lambda n: self.row(found, n), self.data, self.max_odd, graves)
        rows = [row for _, row in kept]
        if not rows:
            raise DataError(f"[[stage]] {self.name} data = {self.data!r} has no rows")
        rewriter = plugins.build(self.use, self.options, learner.run.file.base, f"[[stage]] {self.name} rewriter")
        with learner.telemetry.waiting("rewrite"):
            done = self._rewritten(learner, rows, rewriter)
        if done is None:
            return False
        made = [row | {"response": text} for row in rows if (text := done[row["id"]])]
        if not made:
            raise DataError(f"[[stage]] {self.name}: none of {len(rows)} rows could be rewritten")
        with learner.telemetry.waiting("review"):
            reviewed = self._reviewed(learner, made)
        if reviewed is None:
            return False
        learner.made(self.record(learner, index, rows, made, reviewed))
        return True

    def row(self, rows: Rows, number: int) -> dict[str, Any]:
        """Row ``number`` in the form that the rewriter receives. Raises DataError."""
        return _row(rows[number], number, self.data)

    # -- the model's part ----------------------------------------------------------------------------------------------

    def _rewritten(self, learner: Learner, rows: list[dict[str, Any]], rewriter: Rewriter) -> dict[str, str] | None:
        """The new response of each row by its id, empty if there is none; None if the learner is to stop."""
        part = learner.run.directory / "artefacts" / f".{self.name}.part"
        part.parent.mkdir(exist_ok=True)
        done = _taken_up(part, rows)
        left = [row for row in rows if row["id"] not in done]
        said, away = time.monotonic(), ""
        with ThreadPoolExecutor(self.requests, "rewrite") as pool, part.open("a", encoding="utf-8") as file:
            under_way: dict[Future[str | None], dict[str, Any]] = {}
            while left or under_way:
                if learner.stop:
                    pool.shutdown(wait=False, cancel_futures=True)
                    if running := sum(future.running() for future in under_way):
                        log.info("%s stops once %d requests under way have ended", self.name, running)
                    return None
                while left and len(under_way) < self.requests and not (away and under_way):
                    row = left.pop(0)
                    under_way[pool.submit(rewriter, row)] = row
                for future in wait(under_way, LOOK_SECONDS, FIRST_COMPLETED).done:
                    row = under_way.pop(future)
                    try:
                        text, away = _said(future.result()), ""
                    except Outage as error:
                        away = str(error)
                        left.insert(0, row)
                        continue
                    except Exception as error:  # the plug-in boundary: a rewriter may be third-party code
                        log.warning("%s: row %s is given up: %s: %s", self.name, row["id"], type(error).__name__, error)
                        text = ""
                    done[row["id"]] = text
                    file.write(json.dumps({"id": row["id"], "response": text}) + "\n")
                    file.flush()
                if away and not under_way:
                    learner.stop.wait(min(AGAIN_SECONDS, SAID_SECONDS))
                if time.monotonic() - said > SAID_SECONDS or (away and time.monotonic() - said > AGAIN_SECONDS):
                    said = time.monotonic()
                    why = f", waiting: {away}" if away else ""
                    log.info("%s: %d of %d rows are rewritten%s", self.name, len(done), len(rows), why)
        return done

    # -- review --------------------------------------------------------------------------------------------------------

    def _reviewed(self, learner: Learner, made: list[dict[str, Any]]) -> list[dict[str, Any]] | None:
        """The reviewed rows, or the rows as they are if nobody reviewed them; None if the learner is to stop before."""
        if self.review == "none":
            return made
        home = learner.run.directory
        there, back = offer(home, self.name, made), returned(home, self.name)
        until = time.monotonic() + 3600 * self.review_hours if self.review_hours else float("inf")
        seldom = Seldom(SAID_SECONDS)
        while self.review == "wait" and not back.exists() and time.monotonic() < until:
            if learner.stop:
                return None
            if seldom():
                log.info(
                    "%s waits for people: %d rows lie in %s; edit a copy, then: headrace review %s %s FILE",
                    self.name, len(made), there, home, self.name,
                )  # fmt: skip
            learner.planning.wait(LOOK_SECONDS)
        if not back.exists():
            log.info("%s goes on with %d rows that nobody has reviewed", self.name, len(made))
            return made
        kept = read_reviewed(back, {row["id"] for row in made})
        return [
            row
            | {"response": kept[row["id"]], "reviewed": "as it was" if kept[row["id"]] == row["response"] else "edited"}
            for row in made
            if row["id"] in kept
        ]

    # -- the result ----------------------------------------------------------------------------------------------------

    def record(
        self,
        learner: Learner,
        index: int,
        rows: list[dict[str, Any]],
        made: list[dict[str, Any]],
        kept: list[dict[str, Any]],
    ) -> Artefact:
        """Write the documents of ``kept``; returns the record for the log."""
        path = learner.run.directory / "artefacts" / f"{self.name}.jsonl"
        text = "".join(json.dumps(_document(row, self.data), ensure_ascii=False) + "\n" for row in kept)
        replace(path, text)
        edited = sum(row.get("reviewed") == "edited" for row in kept)
        return Artefact(
            name=self.name,
            stage=index,
            step=learner.progress.version,
            kind="documents",
            path=str(path.relative_to(learner.run.directory)),
            sha256=hashlib.sha256(text.encode()).hexdigest(),
            metrics={
                "documents": float(len(kept)), "rows": float(len(rows)), "not_rewritten": float(len(rows) - len(made)),
                "left_out_by_people": float(len(made) - len(kept)), "edited_by_people": float(edited),
            },
            about={"data": self.data, "rewriter": self.use, "review": self.review},
            created=time.time(),
        )  # fmt: skip


def _said(text: Any) -> str:
    """A rewriter's result as text, with None as the empty text. Raises DataError for any other type."""
    if text is None:
        return ""
    if not isinstance(text, str):
        raise DataError(f"a rewriter must return text or None, not {type(text).__name__}")
    return text


def _row(row: Mapping[str, Any], number: int, data: str) -> dict[str, Any]:
    """A row with its ``id``, the conversation, and the response to rewrite. Raises DataError if one is missing."""
    turns, response = row.get("messages") or row.get("prompt"), row.get("response")
    if isinstance(turns, str):
        turns = [{"role": "user", "content": turns}]
    if not turns or not isinstance(response, str) or not response:
        raise DataError(
            f"[data.{data}] row {number} needs messages (or prompt) and a response; it has {', '.join(row)}"
        )
    metadata = dict(row.get("metadata") or {})
    name = str(metadata.get("sample") or f"{data}-{number}")
    return {
        "id": name, "messages": [dict(turn) for turn in turns], "original": response, "response": response,
        "kind": row.get("kind") or "", "metadata": metadata, "chat": row.get("chat"),
    }  # fmt: skip


def _document(row: Mapping[str, Any], data: str) -> dict[str, Any]:
    """A row of the artefact. Its metadata name the sample that it was made from, and the sample's log position."""
    how = {"rewritten_from": data, **({"reviewed": row["reviewed"]} if "reviewed" in row else {})}
    chat = {"chat": row["chat"]} if row.get("chat") else {}
    return {
        **chat, "messages": row["messages"], "response": row["response"], "kind": row["kind"],
        "metadata": {**row["metadata"], **how},
    }  # fmt: skip


def _taken_up(part: Path, rows: list[dict[str, Any]]) -> dict[str, str]:
    """The rewritten responses, by id, that an interrupted stage left in ``part``. Drops them if the input has changed,
    and always drops an incomplete last line.
    """
    digest = hashlib.sha256(json.dumps([[r["id"], r["original"]] for r in rows]).encode()).hexdigest()
    lines = part.read_text(encoding="utf-8").splitlines(keepends=True) if part.exists() else []
    whole = [line for line in lines if line.endswith("\n")]
    if not whole or whole[0].strip() != digest:
        replace(part, digest + "\n")
        return {}
    if len(whole) < len(lines):
        replace(part, "".join(whole))
    return {row["id"]: row["response"] for row in map(json.loads, whole[1:])}
