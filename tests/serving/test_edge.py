"""Nothing leaves that was not scanned or is not recorded, whichever route it comes from."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import httpx
import msgspec
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from core.errors import UnavailableError
from observability.audit import Audit, AuditConfig
from observability.audit_rows import AuditRow
from observability.audit_segments import read_rows, verify_audit
from serving.auditing import PredictorAudit, Record
from serving.connections import Envelope
from serving.edge import RECORD, Edge
from serving.lifecycle import Identity, Lifecycle
from serving.predictor_metrics import PredictorMetrics
from serving.safety.stream import Release

KEY = b"k" * 32
IDENTITY = Identity("b" * 64, "3", "assistant", "assistant-00003", "none", 1)
Handler = Callable[[Request], Awaitable[Response]]


class FullDisk(Audit):
    """An audit whose disk has no place left."""

    def append(self, row: AuditRow) -> None:
        raise UnavailableError("the audit cannot be written: no space left on device")


class World:
    """One application behind the edge, its audit and its metrics."""

    def __init__(self, folder: Path, required: bool = True, full: bool = False) -> None:
        self.folder = folder
        self.metrics = PredictorMetrics("3", "assistant-00003")
        kind = FullDisk if full else Audit
        self.audit = kind(folder, "predictor", KEY, AuditConfig())
        self.required = required

    async def ask(self, handler: Handler) -> httpx.Response:
        """Ask an application that has this one route."""
        app = Starlette(routes=[Route("/new", handler, methods=["POST"])])
        audit = PredictorAudit(self.audit, self.required, IDENTITY, self.metrics)
        whole = Envelope(Edge(app, audit), IDENTITY, Lifecycle())
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(whole, raise_app_exceptions=False),
            base_url="http://predictor",
        ) as client:
            return await client.post("/new", headers={"x-request-id": "r"})

    def count(self, name: str) -> float:
        text = self.metrics.exposition(None)[0].decode()
        start = f"serin_predictor_{name}_total{{"
        return float(next(x for x in text.splitlines() if x.startswith(start)).split()[-1])

    def rows(self) -> list[AuditRow]:
        assert verify_audit(self.folder, KEY).sound
        return [row for _, row in read_rows(self.folder)]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    found = World(tmp_path)
    yield found
    found.audit.close()


def passed(request: Request, text: str, ends: bool = True) -> None:
    """Let the record know that the chain has passed this text of choice 0."""
    record: Record = request.scope[RECORD]
    record.opened(0)
    record.settled(0, Release(text, scanned=text))
    if ends:
        record.ended(0, "allow", ())


def body(text: str) -> bytes:
    choice = {"index": 0, "text": text, "finish_reason": None}
    return msgspec.json.encode({"id": "x", "choices": [choice]})


async def test_scanned_text_leaves_and_has_its_row(world: World) -> None:
    async def handler(request: Request) -> Response:
        passed(request, "hello")
        return Response(body("hello"), media_type="application/json")

    assert (await world.ask(handler)).status_code == 200
    (row,) = world.rows()
    assert (row.kind, row.request_id, row.bytes_scanned, row.bytes_sent) == ("answer", "r", 5, 5)
    assert [world.count(f"{name}_bytes") for name in ("output", "scanned", "unscanned")] == [
        5,
        5,
        0,
    ]


@pytest.mark.parametrize(
    ("content", "media_type", "size"),
    [
        (body("hello, leak"), "application/json", 6),
        (b"leak", "text/plain", 4),
        (b'{"answer": "leak"}', "application/json", 4),
        (b"leak", "application/json", 4),
    ],
)
async def test_a_route_that_sends_more_than_was_scanned_is_stopped_and_counted(
    world: World, content: bytes, media_type: str, size: int
) -> None:
    async def handler(request: Request) -> Response:
        passed(request, "hello")
        return Response(content, media_type=media_type)

    answer = await world.ask(handler)
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "unscanned")
    assert "leak" not in answer.text
    assert world.count("unscanned_bytes") == size
    assert world.count("output_bytes") == 0
    (row,) = world.rows()
    assert (row.kind, row.reason, row.bytes_sent) == ("failure", "unscanned", 0)


async def test_a_stream_that_leaks_later_ends_with_an_error_event(world: World) -> None:
    async def handler(request: Request) -> Response:
        async def events() -> AsyncIterator[bytes]:
            passed(request, "hello", ends=False)
            yield b"data: " + body("hello") + b"\n\n"
            yield b"data: " + body(" leak") + b"\n\n"
            yield b"data: [DONE]\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")

    answer = await world.ask(handler)
    assert "hello" in answer.text
    assert '"code":"unscanned"' in answer.text
    assert "leak" not in answer.text
    assert "[DONE]" not in answer.text
    part, last = world.rows()
    assert (part.kind, part.bytes_sent) == ("part", 5)
    assert (last.kind, last.reason, last.bytes_sent) == ("failure", "unscanned", 5)


async def test_errors_and_unknown_paths_have_rows_too(world: World) -> None:
    async def broken(request: Request) -> Response:
        raise RuntimeError("oops")

    async def refused(request: Request) -> Response:
        return Response(b'{"error": {"message": "no"}}', 429, media_type="application/json")

    assert (await world.ask(broken)).status_code == 500
    assert (await world.ask(refused)).status_code == 429
    assert [(row.kind, row.status) for row in world.rows()] == [("failure", 500), ("refusal", 429)]


async def test_what_cannot_be_recorded_is_not_given(tmp_path: Path) -> None:
    async def whole(request: Request) -> Response:
        passed(request, "hello")
        return Response(body("hello"), media_type="application/json")

    world = World(tmp_path, full=True)
    answer = await world.ask(whole)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "audit_unavailable")
    assert "hello" not in answer.text
    assert (world.count("output_bytes"), world.count("audit_missed")) == (0, 1)


async def test_where_the_audit_is_not_required_the_answer_leaves_and_is_counted(
    tmp_path: Path,
) -> None:
    async def whole(request: Request) -> Response:
        passed(request, "hello")
        return Response(body("hello"), media_type="application/json")

    world = World(tmp_path, required=False, full=True)
    assert (await world.ask(whole)).status_code == 200
    assert world.count("audit_missed") == 1


async def test_a_html_page_of_a_new_route_is_text_that_nobody_scanned(world: World) -> None:
    async def page(request: Request) -> Response:
        return PlainTextResponse("anything")

    assert (await world.ask(page)).status_code == 500
    assert world.count("unscanned_bytes") == len("anything")
