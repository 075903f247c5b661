"""Serving processes are asked themselves; one that cannot be asked makes the answer unknown."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from core.settings import Settings
from rollout.identities import Identity, from_routes

TOKEN = "t" * 32


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        known = self.headers["Authorization"] == f"Bearer {TOKEN}"
        found = known and self.path == "/serin/identity"
        body = json.dumps({"bundle_digest": "b", "policy_hash": "p"}).encode()
        self.send_response(200 if found else 404)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def home(folder: Path) -> Settings:
    (folder / "control").mkdir(parents=True, exist_ok=True)
    return Settings(home=folder, predictor_token=SecretStr(TOKEN))


def routes(folder: Path, *arms: tuple[int, str, bool]) -> Settings:
    shown = [
        {"percent": percent, "endpoints": [{"url": url, "ready": ready}]}
        for percent, url, ready in arms
    ]
    content = {"generation": 1, "services": {"assistant": {"arms": shown}}}
    settings = home(folder)
    (folder / "control" / "routes.json").write_text(json.dumps(content))
    return settings


def test_every_process_in_traffic_is_asked(tmp_path: Path, url: str) -> None:
    dead = "http://127.0.0.1:9"
    found = routes(tmp_path, (95, url, True), (5, url, True), (0, dead, True), (5, dead, False))
    assert from_routes(found)("default", "assistant") == (Identity("b", "p"),) * 2


def test_one_that_does_not_answer_makes_all_unknown(tmp_path: Path, url: str) -> None:
    found = routes(tmp_path, (95, url, True), (5, "http://127.0.0.1:9", True))
    assert from_routes(found)("default", "assistant") is None
    assert from_routes(routes(tmp_path, (100, url + "/no", True)))("default", "assistant") is None


@pytest.mark.parametrize("text", [None, "", "{}", '{"services": {"assistant": {"arms": [1]}}}'])
def test_routes_that_cannot_be_read_are_unknown(tmp_path: Path, text: str | None) -> None:
    settings = home(tmp_path)
    if text is not None:
        (tmp_path / "control" / "routes.json").write_text(text)
    assert from_routes(settings)("default", "assistant") is None


def test_a_process_that_asks_for_another_token_is_unknown(tmp_path: Path, url: str) -> None:
    settings = routes(tmp_path, (100, url, True))
    other = settings.model_copy(update={"predictor_token": SecretStr("o" * 32)})
    assert from_routes(other)("default", "assistant") is None
