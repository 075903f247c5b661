"""A predictor's stand-in, run as a process: answers like one, and misbehaves when it is told to."""

import argparse
import asyncio
import json
import os
from pathlib import Path
from typing import Any

from aiohttp import web

CALM: dict[str, Any] = {
    "delay": 0.0,  # seconds before the answer's head
    "status": 200,
    "status_first": 0,  # only that many answers have the status; 0 means all
    "ready": True,
    "drop": False,  # close the connection instead of answering
    "cut_body": False,  # close it in the middle of a body of known length
    "chunks": 3,  # events of a stream
    "gap": 0.0,  # seconds between them
    "cut_stream_after": -1,  # close it after that many events
    "cut_inside_event": False,
    "finish": "",  # finish reason of the last event of a stream
    "done": True,  # whether a stream ends with [DONE]
    "answer_bytes": 0,  # size of a large answer
    "text": "",  # what the answer says
    "scores": {},  # as a scorer: score by answer
    "policy": "p1",  # digest of the safety policy in force
    "hides_policy": False,  # answer 503 to whoever asks for it
    "blocked": "",  # what x-serin-blocked says
    "revision": "",  # claim to be another revision
}


class StandIn:
    def __init__(self, revision: str, version: str) -> None:
        self.revision, self.version = revision, version
        self.mood = dict(CALM)
        self.seen: dict[str, Any] = {"requests": 0, "left": 0, "ready_asked": 0, "headers": {}}

    async def control(self, request: web.Request) -> web.Response:
        if request.method == "POST":
            self.mood = {**CALM, **await request.json()}
            self.seen = {"requests": 0, "left": 0, "ready_asked": 0, "headers": {}}
        return web.json_response(self.seen)

    async def score(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.seen["requests"] += 1
        assert body["messages"]
        return web.json_response({"score": self.mood["scores"].get(body["answer"])})

    async def ready(self, request: web.Request) -> web.Response:
        self.seen["ready_asked"] += 1
        return web.Response(status=200 if self.mood["ready"] else 503)

    async def identity(self, request: web.Request) -> web.Response:
        if self.mood["hides_policy"]:
            return web.Response(status=503)
        return web.json_response({"policy_hash": self.mood["policy"]})

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.seen["requests"] += 1
        self.seen["headers"] = {name.lower(): text for name, text in request.headers.items()}
        self.seen["body"] = await request.text()
        try:
            return await self._answer(request, body)
        except (asyncio.CancelledError, ConnectionError):
            self.seen["left"] += 1
            raise

    async def _answer(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        mood = self.mood
        await asyncio.sleep(mood["delay"])
        headers = {
            "x-serin-model-version": self.version,
            "x-serin-revision": mood["revision"] or self.revision,
            "x-serin-policy": mood["policy"],
        }
        if mood["blocked"]:
            headers["x-serin-blocked"] = mood["blocked"]
        if mood["drop"]:
            return self._cut(request)
        if mood["status"] != 200 and self.seen["requests"] <= (mood["status_first"] or 1 << 30):
            error = {"error": {"message": "as told", "type": "server_error"}}
            return web.json_response(error, status=mood["status"], headers=headers)
        if body.get("stream"):
            return await self._stream(request, headers)
        text = "x" * mood["answer_bytes"] or mood["text"] or self.revision
        content = {
            "id": "chatcmpl-" + request.headers.get("x-serin-response-id", "own"),
            "model": f"assistant:{self.version}",
            "choices": [{"index": 0, "message": {"role": "assistant", "content": text}}],
        }
        if mood["cut_body"]:
            response = web.StreamResponse(headers={**headers, "Content-Length": "1000"})
            await response.prepare(request)
            await response.write(b"{")
            return self._cut(request)
        return web.json_response(content, headers=headers)

    async def _stream(self, request: web.Request, headers: dict[str, str]) -> web.StreamResponse:
        mood = self.mood
        response = web.StreamResponse(headers={**headers, "Content-Type": "text/event-stream"})
        await response.prepare(request)
        for index in range(mood["chunks"]):
            if index == mood["cut_stream_after"]:
                if mood["cut_inside_event"]:
                    await response.write(b'data: {"choices": [{"del')
                    await asyncio.sleep(0.05)
                return self._cut(request)
            event = {"choices": [{"index": 0, "delta": {"content": f"{index} "}}]}
            await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")
            await asyncio.sleep(mood["gap"])
        if mood["finish"]:
            last = f'{{"choices":[{{"index":0,"delta":{{}},"finish_reason":"{mood["finish"]}"}}]}}'
            await response.write(f"data: {last}\n\n".encode())
        if mood["done"]:
            await response.write(b"data: [DONE]\n\n")
        return response

    def _cut(self, request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--revision", required=True)
    parser.add_argument("--version", required=True)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--port-file", type=Path, required=True)
    options = parser.parse_args()
    stand_in = StandIn(options.revision, options.version)
    app = web.Application(client_max_size=1 << 24)
    app.router.add_route("*", "/control", stand_in.control)
    app.router.add_post("/score", stand_in.score)
    app.router.add_get("/v2/health/ready", stand_in.ready)
    app.router.add_get("/serin/identity", stand_in.identity)
    app.router.add_post("/openai/v1/chat/completions", stand_in.answer)
    app.router.add_post("/openai/v1/completions", stand_in.answer)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", options.port).start()
    temporary = options.port_file.with_suffix(".new")
    temporary.write_text(str(runner.addresses[0][1]))
    os.replace(temporary, options.port_file)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
