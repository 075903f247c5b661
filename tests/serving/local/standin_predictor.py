"""A predictor for tests: the real one's command line and health routes, without a model.

`behaviour.json` in its bundle says how it starts; the file `<SERIN_HOME>/standin/<revision>.json`
is read at every request and says how it behaves now.
"""

import argparse
import json
import os
import signal
import socketserver
import sys
import threading
import time
from pathlib import Path
from typing import Any


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    for name in ("bundle", "model-name", "model-version", "revision", "port-file"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--http-port", type=int, default=0)
    parser.add_argument("--expected-digest", default="")
    parser.add_argument("--engine", default="openvino")
    parser.add_argument("--threads", type=int)
    return parser.parse_args()


def read(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    return content


OPTIONS = options()
START = read(Path(OPTIONS.bundle) / "behaviour.json")
NOW_FILE = Path(os.environ["SERIN_HOME"]) / "standin" / f"{OPTIONS.revision}.json"
STARTED = time.monotonic()
DRAINING = threading.Event()
TOKEN = (Path(os.environ["SERIN_HOME"]) / "control" / "predictor.key").read_bytes().hex()
AUTHORIZATION = f"Bearer {TOKEN}"


def answer(path: str) -> tuple[int, dict[str, Any]]:
    now = read(NOW_FILE)
    if path == "/v2/health/ready":
        loaded = time.monotonic() - STARTED >= START.get("load_seconds", 0)
        ready = loaded and not DRAINING.is_set() and now.get("ready", True)
        return (200 if ready else 503), {}
    if path == "/serin/identity":
        return 200, {
            "bundle_digest": START.get("digest", OPTIONS.expected_digest or "d" * 64),
            "model_name": OPTIONS.model_name,
            "model_version": OPTIONS.model_version,
            "revision": OPTIONS.revision,
            "engine": OPTIONS.engine,
            "pid": os.getpid(),
            "policy_hash": "",
        }
    if path == "/standin":
        return 200, {"environment": dict(os.environ), "arguments": sys.argv[1:]}
    return 404, {}


class Handler(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        path = self.rfile.readline().split(b" ")[1].decode()
        known = False
        while line := self.rfile.readline().strip():
            known = known or line.decode() == f"Authorization: {AUTHORIZATION}"
        status, content = answer(path)
        if path == "/serin/identity" and not known:
            status, content = 401, {}
        body = json.dumps(content).encode()
        head = f"HTTP/1.1 {status} -\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        self.wfile.write(head.encode() + body)


class Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True


def main() -> None:
    print(f"loading {OPTIONS.bundle}", flush=True)
    if "exit_code" in START:
        print("the weights are not readable", flush=True)
        sys.exit(int(START["exit_code"]))
    server = Server(("127.0.0.1", OPTIONS.http_port), Handler)

    def stop(*_: object) -> None:
        if not START.get("ignore_sigterm"):
            DRAINING.set()
            threading.Thread(target=server.shutdown).start()

    signal.signal(signal.SIGTERM, stop)
    draft = Path(OPTIONS.port_file + ".draft")
    draft.write_text(str(server.server_address[1]))
    draft.rename(OPTIONS.port_file)
    server.serve_forever(poll_interval=0.05)


main()
