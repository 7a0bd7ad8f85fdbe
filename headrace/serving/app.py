"""The addresses of the server: OpenAI's, those of sessions, and the one that actors connect to.

An agent may name its session in the address (``/sessions/NAME/v1`` as the base URL), in the header ``X-Headrace-Session``, in ``metadata``,
or as the ``user``.
"""

from __future__ import annotations

import hmac
import json
import logging
import math
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from aiohttp import web

from broker import sessions
from broker.errors import HeadraceError
from broker.sessions import ACTORS, OPEN
from headrace.serving.actors import Slot
from headrace.serving.desk import Desk
from headrace.serving.forms import ApiError, chunks, completion, read_name, read_request, refuse
from headrace.serving.sessions import Session

log = logging.getLogger("serve")
MAX_BODY = 32 << 20
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Door:
    """``model`` is the run's name. ``key`` is what agents must show, if it is not empty; ``token`` what actors must."""

    def __init__(self, desk: Desk, model: str, token: str, key: str = "") -> None:
        self._desk, self._model, self._token, self._key = desk, model, token, key

    def announce(self, directory: Path, url: str) -> None:
        """Tell the actors of the run where this door is."""
        sessions.Door(url, self._token).announce(directory)

    def app(self) -> web.Application:
        app = web.Application(client_max_size=MAX_BODY, middlewares=[self._guard])
        for prefix in ("", "/sessions/{name}"):
            app.router.add_post(f"{prefix}/v1/chat/completions", self._chat)
            app.router.add_get(f"{prefix}/v1/models", self._models)
        app.router.add_get("/v1/models/{model}", self._models)
        app.router.add_post("/v1/headrace/sessions", self._open)
        app.router.add_get("/v1/headrace/sessions/{name}", self._status)
        app.router.add_post("/v1/headrace/sessions/{name}/reward", self._reward)
        app.router.add_post("/v1/headrace/sessions/{name}/finish", self._finish)
        app.router.add_get(ACTORS, self._actors)
        return app

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Everything that goes wrong has OpenAI's shape."""
        try:
            secret = self._token if request.path == ACTORS else self._key
            shown = request.headers.get("Authorization", "").removeprefix("Bearer ")
            if secret and not hmac.compare_digest(shown.encode(), secret.encode()):
                raise ApiError("Authorization: it is not the key of this door", status=401, code="invalid_api_key")
            return await handler(request)
        except ApiError as error:
            return _problem(error)
        except web.HTTPException as error:
            hint = "POST /v1/chat/completions, GET /v1/models, POST /v1/headrace/sessions are here (docs/agents.md)"
            return _problem(ApiError(f"{request.method} {request.path}: {error.reason}; {hint}", status=error.status))
        except (HeadraceError, OSError) as error:
            log.warning("%s %s: %s", request.method, request.path, error)
            return _problem(ApiError(str(error), status=503, code="away"))

    # -- OpenAI's ------------------------------------------------------------------------------------------------------

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        session = request.match_info.get("name") or request.headers.get("X-Headrace-Session", "")
        asked = read_request(
            await _json(request), self._model, read_name(session, "session"),
            read_name(request.headers.get("X-Headrace-Task", ""), "task"),
        )  # fmt: skip
        reply = await self._desk.chat(asked)
        headers = {"X-Headrace-Session": reply.session}
        if not asked.stream:
            answer: web.StreamResponse = web.json_response(completion(reply, self._model), headers=headers)
            await answer.prepare(request)
            await answer.write_eof()
        else:
            answer = web.StreamResponse(headers={**headers, "Content-Type": "text/event-stream"})
            await answer.prepare(request)
            for event in chunks(reply, self._model, asked.usage):
                await answer.write(event.encode("utf-8", "replace"))
            await answer.write_eof()
        self._desk.told(reply.session)
        return answer

    async def _models(self, request: web.Request) -> web.Response:
        card = {"id": self._model, "object": "model", "created": int(time.time()), "owned_by": "headrace"}
        wanted = request.match_info.get("model")
        if wanted is None:
            return web.json_response({"object": "list", "data": [card]})
        if wanted != self._model:
            raise ApiError(
                f"model = {wanted!r}: this run serves {self._model!r}",
                status=404,
                param="model",
                code="model_not_found",
            )
        return web.json_response(card)

    # -- sessions ------------------------------------------------------------------------------------------------------

    async def _open(self, request: web.Request) -> web.Response:
        """A session on a task of the run's own."""
        body = await _json(request) if request.can_read_body else {}
        if not isinstance(body, dict):
            raise ApiError('the body must be a JSON object, such as {"session": "NAME"}', code="invalid_body")
        name, task = (read_name(body.get(key) or "", key) for key in ("session", "task"))
        session, slot = await self._desk.begin(name, task)
        return web.json_response({**session.status(), "task": _task(session, slot)})

    async def _status(self, request: web.Request) -> web.Response:
        return web.json_response(self._desk.session(request.match_info["name"]).status())

    async def _finish(self, request: web.Request) -> web.Response:
        session = self._desk.session(request.match_info["name"])
        await self._desk.finish(session, "finished")
        return web.json_response(session.status())

    async def _reward(self, request: web.Request) -> web.Response:
        session = self._desk.session(request.match_info["name"])
        body = await _json(request)
        value = body.get("reward") if isinstance(body, dict) else None
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise refuse("reward", value, "give a finite number")
        rewarder, why = body.get("rewarder") or "", body.get("why") or ""
        if not isinstance(rewarder, str) or not isinstance(why, str):
            raise refuse("rewarder" if not isinstance(rewarder, str) else "why", rewarder or why, "give a text")
        votes = await self._desk.reward(session, rewarder, float(value), why[:500])
        return web.json_response(
            {**session.status(), "votes": [{"group_id": v.group_id, "index": v.index} for v in votes]}
        )

    async def _actors(self, request: web.Request) -> web.StreamResponse:
        return await self._desk.actors.serve(request)


def _task(session: Session, slot: Slot) -> dict[str, Any]:
    """What an agent must know of the task that it plays."""
    prompt = slot.prompt
    return {
        "id": session.task, "messages": [] if prompt.kind == OPEN else [m._asdict() for m in prompt.messages], "answer": prompt.answer,
        "kind": prompt.kind, "metadata": dict(prompt.metadata), "purpose": prompt.purpose,
        "sampling": prompt.sampling.pack(),
    }  # fmt: skip


async def _json(request: web.Request) -> Any:
    try:
        return json.loads(await request.read())
    except (ValueError, RecursionError) as error:
        raise ApiError(f"the body is no JSON: {error}", code="invalid_json") from error


def _problem(error: ApiError) -> web.Response:
    headers = {"Retry-After": "5"} if error.status == 503 else {}
    return web.json_response(error.body(), status=error.status, headers=headers)
