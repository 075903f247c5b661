"""A predictor without a model: loads at once, answers every chat; for tests with many revisions."""

import argparse
import asyncio
import json
import os
import signal
from pathlib import Path

ANSWER_SECONDS = 0.01
CHAT = "/openai/v1/chat/completions"


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    for name in ("bundle", "model-name", "model-version", "revision", "port-file"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--http-port", type=int, default=0)
    parser.add_argument("--expected-digest", default="")
    parser.add_argument("--engine", default="openvino")
    parser.add_argument("--threads", type=int)
    return parser.parse_args()


GIVEN = options()


async def answer(path: str) -> tuple[int, dict[str, object]]:
    if path == "/v2/health/ready":
        return 200, {}
    if path == "/serin/identity":
        return 200, {
            "bundle_digest": GIVEN.expected_digest or Path(GIVEN.bundle).name,
            "model_name": GIVEN.model_name,
            "model_version": GIVEN.model_version,
            "revision": GIVEN.revision,
            "engine": GIVEN.engine,
            "pid": os.getpid(),
            "policy_hash": "",
        }
    if path == CHAT:
        await asyncio.sleep(ANSWER_SECONDS)
        message = {"role": "assistant", "content": GIVEN.model_version}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return 200, {"id": "x", "object": "chat.completion", "choices": [choice]}
    return 404, {}


async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while line := await reader.readline():
            path, length = line.split(b" ")[1].decode(), 0
            once = b"HTTP/1.0" in line
            while (header := await reader.readline()).strip():
                name, _, value = header.partition(b":")
                length = int(value) if name.lower() == b"content-length" else length
            await reader.readexactly(length)
            status, content = await answer(path)
            body = json.dumps(content).encode()
            head = (
                f"HTTP/1.1 {status} OK\r\nContent-Type: application/json\r\n"
                f"x-serin-model-version: {GIVEN.model_version}\r\n"
                f"Content-Length: {len(body)}\r\n\r\n"
            )
            writer.write(head.encode() + body)
            await writer.drain()
            if once:
                break
    except (ConnectionError, asyncio.IncompleteReadError):
        pass
    finally:
        writer.close()


async def main() -> None:
    server = await asyncio.start_server(talk, "127.0.0.1", GIVEN.http_port)
    draft = Path(GIVEN.port_file + ".draft")
    draft.write_text(str(server.sockets[0].getsockname()[1]))
    draft.rename(GIVEN.port_file)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()
    await asyncio.sleep(0.2)  # what is in hand is answered


asyncio.run(main())
