"""``kind = "rewrite"``: what an earlier stage collected, written anew for readers, by a model and, if wanted, by people.

The result is an artefact of the stage's name, ``RUN/artefacts/NAME.jsonl``; each of its rows says which sample it was made of, and where that
lies in the log. The cold start of DeepSeek-R1 (arXiv 2501.12948, section 2.3.1).
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
SAID_SECONDS = 20.0  # between two words of whoever waits
LOOK_SECONDS = 0.2
AGAIN_SECONDS = 5.0  # after which a row is tried again whose server was away


class RewriteStage(Stage):
    """Rewrites each row of ``data`` (``messages`` or ``prompt``, and ``response``) by ``rewriter``: a table with ``use`` and options, or the
    options of ``learner.rewriting.served:Served`` alone (``{ url = "http://127.0.0.1:8000/v1", model = "NAME" }``). ``requests`` of them are
    under way at a time.

    ``review``: ``none``; ``wait`` offers the rows to people in ``RUN/review/NAME.jsonl`` and waits until ``headrace review`` brings them back,
    at most ``review_hours`` (0: as long as it takes); ``offer`` goes on with the rows as they are unless they have come back already.
    A stage that is cut off goes on with the rows that are not rewritten yet. Rows that cannot be read become dead letters, up to the share
    ``max_odd``.
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
        """Row ``number`` as the rewriter is given it. Raises DataError."""
        return _row(rows[number], number, self.data)

    # -- the model's part ----------------------------------------------------------------------------------------------

    def _rewritten(self, learner: Learner, rows: list[dict[str, Any]], rewriter: Rewriter) -> dict[str, str] | None:
        """The new response of each row by its id, empty where there is none; None if the learner is to stop."""
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
                    except Exception as error:  # the plug-in boundary: a rewriter is anybody's code
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

    # -- people's part -------------------------------------------------------------------------------------------------

    def _reviewed(self, learner: Learner, made: list[dict[str, Any]]) -> list[dict[str, Any]] | None:
        """The rows as they came back from people; None if the learner is to stop before."""
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

    # -- what has come of it -------------------------------------------------------------------------------------------

    def record(
        self,
        learner: Learner,
        index: int,
        rows: list[dict[str, Any]],
        made: list[dict[str, Any]],
        kept: list[dict[str, Any]],
    ) -> Artefact:
        """Write the documents, and what the log says of them."""
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
    """What a rewriter has given; empty where there is none to be had. Raises DataError for anything but text."""
    if text is None:
        return ""
    if not isinstance(text, str):
        raise DataError(f"a rewriter must return text or None, not {type(text).__name__}")
    return text


def _row(row: Mapping[str, Any], number: int, data: str) -> dict[str, Any]:
    """A row with its ``id``, the conversation, and the response that is to be rewritten. Raises DataError."""
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
    """A row of the artefact: its metadata name the sample that it was made of, and keep its place in the log."""
    how = {"rewritten_from": data, **({"reviewed": row["reviewed"]} if "reviewed" in row else {})}
    chat = {"chat": row["chat"]} if row.get("chat") else {}
    return {
        **chat, "messages": row["messages"], "response": row["response"], "kind": row["kind"],
        "metadata": {**row["metadata"], **how},
    }  # fmt: skip


def _taken_up(part: Path, rows: list[dict[str, Any]]) -> dict[str, str]:
    """The rows that a stage which was cut off had rewritten. They count only for the same input; a line that was cut off is none."""
    digest = hashlib.sha256(json.dumps([[r["id"], r["original"]] for r in rows]).encode()).hexdigest()
    lines = part.read_text(encoding="utf-8").splitlines(keepends=True) if part.exists() else []
    whole = [line for line in lines if line.endswith("\n")]
    if not whole or whole[0].strip() != digest:
        replace(part, digest + "\n")
        return {}
    if len(whole) < len(lines):
        replace(part, "".join(whole))
    return {row["id"]: row["response"] for row in map(json.loads, whole[1:])}
