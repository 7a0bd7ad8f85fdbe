"""An environment over HTTP, as a process of its own: ``python environment_server.py PORT``. It counts to ``answer``; what the first message of
the prompt says makes it slow, ill or odd."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from aiohttp import web

EPISODES: dict[str, dict[str, Any]] = {}
TRIES: dict[str, int] = {}


async def reset(request: web.Request) -> web.StreamResponse:
    body = await request.json()
    EPISODES[body["episode"]] = {"how": body["prompt"]["messages"][0]["content"], "left": int(body["prompt"]["answer"])}
    return web.json_response({"observation": f"sample {body['prompt']['index']}", "reward": 0.0, "done": False})


async def step(request: web.Request) -> web.StreamResponse:
    body = await request.json()
    episode = EPISODES[body["episode"]]
    how = episode["how"]
    tries = TRIES[body["episode"]] = TRIES.get(body["episode"], 0) + 1
    if how == "busy" and tries == 1:
        return web.json_response({"why": "come again"}, status=503)
    if how == "ill":
        raise RuntimeError("a bug of its own")
    if how == "garbage":
        return web.Response(text="<html>hello</html>")
    if how == "odd":
        return web.json_response({"observation": 7, "done": False})
    if how == "endless":
        return web.Response(text='{"reward": 1e999, "done": true}', content_type="application/json")
    if how == "digits":
        return web.Response(text=f'{{"reward": 1{"0" * 400}, "done": true}}', content_type="application/json")
    if how == "flood":
        return web.Response(text=" " * (5 << 20), content_type="application/json")
    if how == "trickle":
        answer = web.StreamResponse()
        await answer.prepare(request)
        for _ in range(600):
            await answer.write(b" ")
            await asyncio.sleep(0.1)
    if how == "hang":
        await asyncio.sleep(3600)
    if how == "slow":
        await asyncio.sleep(0.3)
    episode["left"] -= 1
    done = episode["left"] == 0
    return web.json_response({"observation": f"{episode['left']} left", "reward": float(done), "done": done})


if __name__ == "__main__":
    app = web.Application()
    app.router.add_post("/reset", reset)
    app.router.add_post("/step", step)
    web.run_app(
        app, host="127.0.0.1", port=int(sys.argv[1]), print=lambda *_: print("ready", flush=True), shutdown_timeout=0.1
    )
