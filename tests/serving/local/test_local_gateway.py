"""The gateway's word counts: traffic is told, and processes are stopped, when it has the routes."""

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.serving.local.local_plane import ControlPlane, Planes, WaitFor


class Gateway:
    """Answers /serin/routes with the generation in the routes file, as long as it follows it."""

    def __init__(self) -> None:
        self.routes_file = Path("none")
        self.held: int | None = None
        self.asked = 0
        gateway = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                gateway.asked += 1
                body = json.dumps({"generation": gateway.generation(), "more": 1}).encode()
                self.send_response(200 if self.path == "/serin/routes" else 404)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def generation(self) -> int:
        if self.held is not None or not self.routes_file.exists():
            return self.held or 0
        generation: int = json.loads(self.routes_file.read_text())["generation"]
        return generation

    def hold(self) -> None:
        """Stop following the file."""
        self.held = self.generation()

    def follow(self) -> None:
        self.held = None


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    made = Gateway()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture
def plane(planes: "Planes", gateway: Gateway) -> "ControlPlane":
    made: ControlPlane = planes(gateway_url=gateway.url)
    gateway.routes_file = made.home / "control" / "routes.json"
    made.start()
    made.create(made.bundle("a"))
    made.wait_ready()
    return made


def test_clients_are_told_the_gateways_address(plane: "ControlPlane", gateway: Gateway) -> None:
    status = plane.get()["status"]
    assert status["url"] == status["address"]["url"] == gateway.url
    assert status["components"]["predictor"]["url"] == gateway.url


def test_traffic_is_told_after_the_gateway_has_it(
    plane: "ControlPlane", gateway: Gateway, wait_for: "WaitFor"
) -> None:
    plane.predictor(canaryTrafficPercent=5, **plane.model("b", "2"))
    plane.wait_traffic(("00002", 5, "latest"), ("00001", 95, "prev"))
    gateway.hold()
    plane.predictor(canaryTrafficPercent=0)
    wait_for(lambda: plane.arms()["canary"]["percent"] == 0, "the routes")
    wait_for(lambda: plane.condition() == ("Unknown", "IngressNotConfigured"), "the condition")
    assert plane.traffic() == [("00002", 5, "latest"), ("00001", 95, "prev")]
    gateway.follow()
    plane.wait_traffic(("00002", 0, "latest"), ("00001", 100, "prev"))
    plane.wait_ready()


def test_a_process_ends_after_the_gateway_left_it(
    plane: "ControlPlane", gateway: Gateway, wait_for: "WaitFor"
) -> None:
    for number, name in ((2, "b"), (3, "c")):
        gateway.follow()
        plane.predictor(**plane.model(name, str(number)))
        wait_for(lambda: plane.arms()["stable"]["model_version"], "the routes")
        if number == 3:
            gateway.hold()
            wait_for(lambda: plane.arms()["stable"]["model_version"] == "3", "the routes")
        else:
            plane.wait_traffic(("00002", 100, "latest"))
    asked = gateway.asked
    wait_for(lambda: gateway.asked > asked + 10, "further questions")
    assert sorted(plane.processes()) == ["00001", "00002", "00003"]
    gateway.follow()
    wait_for(lambda: sorted(plane.processes()) == ["00002", "00003"], "the first one's end")


def test_a_rollback_reaches_the_routes_fast(plane: "ControlPlane", wait_for: "WaitFor") -> None:
    plane.predictor(canaryTrafficPercent=50, **plane.model("b", "2"))
    plane.wait_traffic(("00002", 50, "latest"), ("00001", 50, "prev"))
    began = time.monotonic()
    plane.predictor(canaryTrafficPercent=0)
    wait_for(lambda: plane.arms()["canary"]["percent"] == 0, "the routes")
    assert time.monotonic() - began < 1


def test_a_gateway_that_is_away_is_not_waited_for_long(
    planes: "Planes", gateway: Gateway, wait_for: "WaitFor"
) -> None:
    gateway.server.shutdown()
    gateway.server.server_close()
    plane: ControlPlane = planes(gateway_url=gateway.url, gateway_wait_seconds=0.5)
    plane.start()
    plane.create(plane.bundle("a"))
    wait_for(lambda: plane.condition() == ("Unknown", "IngressNotConfigured"), "the wait")
    plane.wait_traffic(("00001", 100, "latest"))
    assert plane.condition() == ("True", "")


def test_a_restarted_control_plane_asks_the_gateway_again(
    plane: "ControlPlane", gateway: Gateway, wait_for: "WaitFor"
) -> None:
    plane.stop()
    gateway.hold()
    asked, generation = gateway.asked, plane.routes()["generation"]
    plane.start()
    wait_for(lambda: gateway.asked > asked, "a question")
    assert plane.routes()["generation"] == generation
    assert plane.traffic() == [("00001", 100, "latest")]
    assert plane.condition() == ("True", "")
