"""A judging server in a process of its own: chat completions, classifiers and log-probabilities, with the faults that a test asks for.

``python judge_server.py [PORT]``: writes its port. It answers by rule: a chat scores the length of what it is shown between marks; a classifier scores the
number of the letter e. ``POST /faults`` takes a list of what the next requests get instead: a status, ``"hang"``, ``"trickle"``, ``"garbage"``, ``"nan"``, ``"deep"``, ``"drop"``, or
a map with ``say`` (the chat's reply) or ``status`` and ``retry_after``. ``GET /seen`` lists the requests so far.
"""

from __future__ import annotations

import asyncio
import re
import sys
import time
from typing import Any

from aiohttp import web

SHOWN = re.compile(r"\[(\w[\w ]*) ([0-9a-f]{12})\]\n(.*?)\n\[end of \1 \2\]", re.DOTALL)


class JudgeServer:
    def __init__(self) -> None:
        self.faults: list[Any] = []
        self.seen: list[dict[str, Any]] = []

    async def fault(self, request: web.Request) -> web.StreamResponse | str | None:
        """The answer that stands in for the real one, or what the chat is to say."""
        self.seen.append({"path": request.path, "body": await request.json(), "at": time.monotonic(), "key": request.headers.get("Authorization", "")})  # fmt: skip
        fault = self.faults.pop(0) if self.faults else None
        if isinstance(fault, dict) and "say" in fault:
            return str(fault["say"])
        if isinstance(fault, dict):
            return web.Response(status=fault["status"], headers={"Retry-After": str(fault["retry_after"])})
        if fault == "hang":
            await asyncio.sleep(60)
        if fault == "trickle":
            answer = web.StreamResponse()
            await answer.prepare(request)
            for _ in range(600):
                await answer.write(b" ")
                await asyncio.sleep(0.1)
        if fault == "deep":
            return web.Response(text="[" * 100_000, content_type="application/json")
        if fault == "garbage":
            return web.Response(text="<html>no JSON</html>")
        if fault == "nan":
            rows = '{"data": [{"index": 0, "probs": [NaN, 0.5], "data": [NaN]}]}'
            told = '[{"embedding": [NaN]}]' if "text" in await request.json() else rows
            return web.Response(text=told, content_type="application/json")
        if fault == "empty":
            return web.json_response({})
        if fault == "drop":
            assert request.transport is not None
            request.transport.close()
        return web.Response(status=fault, text="on purpose") if isinstance(fault, int) else None

    async def chat(self, request: web.Request) -> web.StreamResponse:
        fault = await self.fault(request)
        if isinstance(fault, web.StreamResponse):
            return fault
        shown = {name: text for name, _, text in SHOWN.findall((await request.json())["messages"][1]["content"])}
        if fault is None and "response A" in shown:
            a, b = len(shown["response A"]), len(shown["response B"])
            fault = f"Both try.\nBetter: {'A' if a > b else 'B' if b > a else 'tie'}"
        elif fault is None:
            size = len(shown.get("summary", shown.get("response", "")))
            fault = f"<think>Score: 1?</think>It has {size} characters.\nScore: {min(10, 1 + size)}"
        return web.json_response({"choices": [{"message": {"role": "assistant", "content": fault}}]})

    async def classify(self, request: web.Request) -> web.StreamResponse:
        fault = await self.fault(request)
        if isinstance(fault, web.StreamResponse):
            return fault
        body = await request.json()
        if "text" in body:
            return web.json_response([{"embedding": [text.count("e") - 5.0]} for text in body["text"]])
        rows = [
            {"index": i, "label": "x", "probs": [1 / (1 + t.count("e")), 1 - 1 / (1 + t.count("e"))]}
            for i, t in enumerate(body["input"])
        ]
        return web.json_response({"data": rows[::-1]})

    async def pooling(self, request: web.Request) -> web.StreamResponse:
        fault = await self.fault(request)
        if isinstance(fault, web.StreamResponse):
            return fault
        texts = (await request.json())["input"]
        return web.json_response(
            {"data": [{"index": i, "data": [[9.0], [t.count("e") - 5.0]]} for i, t in enumerate(texts)]}
        )

    async def generate(self, request: web.Request) -> web.StreamResponse:
        """Log-probabilities of the input, as SGLang gives them: minus a thousandth of the token's id, and none of the first one."""
        fault = await self.fault(request)
        if isinstance(fault, web.StreamResponse):
            return fault
        ids = (await request.json())["input_ids"]
        rows = [[None if place == 0 else -token / 1000, token, None] for place, token in enumerate(ids)]
        return web.json_response({"text": "", "meta_info": {"input_token_logprobs": rows[1:] if fault else rows}})

    async def set_faults(self, request: web.Request) -> web.StreamResponse:
        self.faults = await request.json()
        return web.json_response(None)

    async def list_seen(self, request: web.Request) -> web.StreamResponse:
        seen, self.seen = self.seen, []
        return web.json_response(seen)


async def serve() -> None:
    server, app = JudgeServer(), web.Application(client_max_size=64 << 20)
    app.add_routes([
        web.post("/v1/chat/completions", server.chat), web.post("/classify", server.classify), web.post("/v1/classify", server.classify),
        web.post("/pooling", server.pooling), web.post("/generate", server.generate), web.post("/faults", server.set_faults), web.get("/seen", server.list_seen),
    ])  # fmt: skip
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", int(sys.argv[1]) if len(sys.argv) > 1 else 0)
    await site.start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve())
