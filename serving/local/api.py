"""The Kubernetes REST paths of InferenceServices on loopback: HTTP in, the store's answers out.

Answers errors as Status objects. Reads and writes the store only; the controller does the rest.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from core.errors import InputError
from serving.local import discovery
from serving.local.metrics import CONTENT_TYPE, Exits
from serving.local.objects import (
    API_VERSION,
    GROUP,
    KIND,
    PLURAL,
    VERSION,
    Key,
    Object,
    Selector,
    read_selector,
)
from serving.local.refusals import Refusal, bad_request
from serving.local.store import Event, Store, Watcher
from serving.local.tables import table, wants_table

BODY_BYTES_MAX = 1 << 20
WATCH_SECONDS_MAX = 3600
WATCHERS_MAX = 100
JSON = "application/json"
MERGE_PATCH = "application/merge-patch+json"
PROTOBUF = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"
LOCAL_HOSTS = ("127.0.0.1", "localhost", "[::1]")
ROOT = f"/apis/{GROUP}/{VERSION}"
Handler = Callable[[Request], Awaitable[Response]]


class Api:
    """Handlers over one store; `exits` are counted by whoever starts predictors."""

    def __init__(self, store: Store, exits: Exits) -> None:
        self.store = store
        self._exits = exits
        self.watchers = 0

    def application(self) -> Starlette:
        """Return the ASGI application."""
        fixed: dict[str, Callable[[], Object]] = {
            "/api": discovery.core_versions,
            "/api/v1": discovery.core_resources,
            "/apis": discovery.groups,
            f"/apis/{GROUP}": discovery.group,
            ROOT: discovery.group_resources,
            "/version": discovery.version,
        }
        named = ROOT + "/namespaces/{namespace}/" + PLURAL
        handlers: list[tuple[str, Handler, list[str]]] = [
            *((path, _document(build), ["GET"]) for path, build in fixed.items()),
            ("/openapi/v2", _openapi, ["GET"]),
            ("/healthz", _healthy, ["GET"]),
            ("/livez", _healthy, ["GET"]),
            ("/readyz", _healthy, ["GET"]),
            ("/metrics", self._metrics, ["GET"]),
            ("/api/v1/namespaces", self._namespaces, ["GET"]),
            ("/api/v1/namespaces/{namespace}", _namespace, ["GET"]),
            ("/api/v1/events", _no_events, ["GET"]),
            ("/api/v1/namespaces/{namespace}/events", _no_events, ["GET"]),
            (f"{ROOT}/{PLURAL}", self._list, ["GET"]),
            (named, self._list, ["GET"]),
            (named, self._create, ["POST"]),
            (named + "/{name}", self._get, ["GET"]),
            (named + "/{name}/status", self._get, ["GET"]),
            (named + "/{name}", self._replace, ["PUT"]),
            (named + "/{name}", self._patch, ["PATCH"]),
            (named + "/{name}", self._delete, ["DELETE"]),
        ]
        routes = [Route(path, _guarded(handler), methods=way) for path, handler, way in handlers]
        errors = {404: _no_path, 405: _no_method}
        return Starlette(routes=routes, exception_handlers=errors)

    async def _metrics(self, _: Request) -> Response:
        return Response(self._exits.exposition(), media_type=CONTENT_TYPE)

    async def _list(self, request: Request) -> Response:
        namespace = request.path_params.get("namespace")
        selector = _selector(request)
        if _flag(request, "watch"):
            return await self._watch(request, namespace, selector)
        found = [
            item for item in self.store.objects().values() if _selected(item, namespace, selector)
        ]
        if wants_table(request.headers.get("accept", "")):
            return _answer(table(found, self.store.version, time.time()))
        return _answer(
            {
                "apiVersion": API_VERSION,
                "kind": f"{KIND}List",
                "metadata": {"resourceVersion": str(self.store.version), "continue": ""},
                "items": found,
            }
        )

    async def _get(self, request: Request) -> Response:
        found = self.store.get(_key(request))
        if wants_table(request.headers.get("accept", "")):
            return _answer(table([found], self.store.version, time.time()))
        return _answer(found)

    async def _create(self, request: Request) -> Response:
        given = await _body(request, JSON)
        done = self.store.create(request.path_params["namespace"], given, _dry_run(request))
        return _answer(done.found, 201, done.warnings)

    async def _replace(self, request: Request) -> Response:
        given = await _body(request, JSON)
        done = self.store.replace(_key(request), given, _dry_run(request))
        return _answer(done.found, 200, done.warnings)

    async def _patch(self, request: Request) -> Response:
        given = await _body(request, MERGE_PATCH)
        done = self.store.patch(_key(request), given, _dry_run(request))
        return _answer(done.found, 200, done.warnings)

    async def _delete(self, request: Request) -> Response:
        empty = request.headers.get("content-length", "0") == "0"
        given = {} if empty else await _body(request, JSON)
        wanted = given.get("preconditions") or {}
        gone = self.store.delete(
            _key(request),
            uid=str(wanted.get("uid") or ""),
            version=str(wanted.get("resourceVersion") or ""),
            # kubectl asks for a dry run in the body, not in the query.
            dry_run=_dry_run(request, given.get("dryRun")),
        )
        metadata = gone["metadata"]
        details = {"name": metadata["name"], "group": GROUP, "kind": PLURAL, "uid": metadata["uid"]}
        status = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}
        return _answer({**status, "details": details})

    async def _namespaces(self, request: Request) -> Response:
        names = {"default", *(key[0] for key in self.store.objects())}
        items = [discovery.namespace(name) for name in sorted(names)]
        return _answer({"kind": "NamespaceList", "apiVersion": "v1", "metadata": {},
                        "items": items})  # fmt: skip

    async def _watch(self, request: Request, namespace: str | None, selector: Selector) -> Response:
        if _flag(request, "sendInitialEvents"):
            # Clients that try this newer form then list and watch in the old one.
            raise Refusal(422, "Invalid", "sendInitialEvents: Forbidden: list first, then watch")
        if self.watchers >= WATCHERS_MAX:
            raise Refusal(429, "TooManyRequests", f"at most {WATCHERS_MAX} watches at a time")
        text = request.query_params.get("resourceVersion", "")
        since = None if text in ("", "0") else _number("resourceVersion", text)
        text = request.query_params.get("timeoutSeconds", "")
        seconds = min(_number("timeoutSeconds", text), WATCH_SECONDS_MAX) if text else None
        watcher, missed = self.store.watch(since)
        as_table = wants_table(request.headers.get("accept", ""))
        lines = self._lines(
            watcher, missed, as_table, seconds or WATCH_SECONDS_MAX, namespace, selector
        )
        return StreamingResponse(lines, media_type=JSON)

    async def _lines(
        self,
        watcher: Watcher,
        missed: Sequence[Event],
        as_table: bool,
        seconds: int,
        namespace: str | None,
        selector: Selector,
    ) -> AsyncIterator[bytes]:
        self.watchers += 1
        heads = True
        pending = list(missed)
        deadline = time.monotonic() + seconds
        try:
            while True:
                for event in pending:
                    if not _selected(event.found, namespace, selector):
                        continue
                    found = event.found
                    if as_table:
                        found = table([found], event.version, time.time(), heads)
                        heads = False
                    yield msgspec.json.encode({"type": event.kind, "object": found}) + b"\n"
                try:
                    left = deadline - time.monotonic()
                    given = await asyncio.wait_for(watcher.queue.get(), left)
                except TimeoutError:
                    return
                if given is None:
                    return
                pending = [given]
        finally:
            self.watchers -= 1
            self.store.close(watcher)


def _guarded(handler: Handler) -> Handler:
    async def guarded(request: Request) -> Response:
        try:
            host = request.headers.get("host", "").rpartition(":")[0] or request.headers.get("host")
            if host not in LOCAL_HOSTS:
                # A web page that renames itself to loopback must not steer this machine.
                raise Refusal(403, "Forbidden", f"the Host header must be one of {LOCAL_HOSTS}")
            return await handler(request)
        except Refusal as refusal:
            return _answer(refusal.document(), refusal.code)
        except InputError as error:
            return _answer(bad_request(str(error)).document(), 400)
        except OSError as error:
            message = f"the state could not be written: {error}"
            return _answer(Refusal(500, "InternalError", message).document(), 500)

    return guarded


def _document(build: Callable[[], Object]) -> Handler:
    async def document(request: Request) -> Response:
        return _answer(build())

    return document


async def _openapi(request: Request) -> Response:
    if "protobuf" in request.headers.get("accept", ""):
        return Response(discovery.openapi_protobuf(), media_type=PROTOBUF)
    return _answer(discovery.openapi())


async def _healthy(request: Request) -> Response:
    return Response("ok", media_type="text/plain")


async def _namespace(request: Request) -> Response:
    return _answer(discovery.namespace(request.path_params["namespace"]))


async def _no_events(request: Request) -> Response:
    return _answer({"kind": "EventList", "apiVersion": "v1", "metadata": {}, "items": []})


async def _no_path(request: Request, error: Exception) -> Response:
    message = "the server could not find the requested resource"
    return _answer(Refusal(404, "NotFound", message).document(), 404)


async def _no_method(request: Request, error: Exception) -> Response:
    message = "the server does not allow this method on the requested resource"
    return _answer(Refusal(405, "MethodNotAllowed", message).document(), 405)


def _answer(content: Object, status: int = 200, warnings: Sequence[str] = ()) -> Response:
    response = Response(msgspec.json.encode(content), status, media_type=JSON)
    for warning in warnings:
        response.headers.append("warning", f'299 - "{warning}"')
    return response


async def _body(request: Request, kind: str) -> Object:
    given = request.headers.get("content-type", "").partition(";")[0].strip()
    if given != kind:
        message = f"the body of this request must be {kind}, not {given or 'without a type'}"
        raise Refusal(415, "UnsupportedMediaType", message)
    data = b""
    async for chunk in request.stream():
        data += chunk
        if len(data) > BODY_BYTES_MAX:
            message = f"the body may have at most {BODY_BYTES_MAX} bytes"
            raise Refusal(413, "RequestEntityTooLarge", message)
    try:
        content = msgspec.json.decode(data)
    except msgspec.DecodeError as error:
        raise bad_request(f"the body is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise bad_request("the body must be a JSON object")
    return content


def _key(request: Request) -> Key:
    return request.path_params["namespace"], request.path_params["name"]


def _selector(request: Request) -> Selector:
    query = request.query_params
    return read_selector(query.get("labelSelector", ""), query.get("fieldSelector", ""))


def _selected(found: Object, namespace: str | None, selector: Selector) -> bool:
    same = namespace is None or found["metadata"]["namespace"] == namespace
    return same and selector.matches(found)


def _flag(request: Request, name: str) -> bool:
    return request.query_params.get(name, "") in ("true", "1", "True")


def _dry_run(request: Request, in_body: Any = None) -> bool:
    asked = [*request.query_params.getlist("dryRun"), *(in_body or [])]
    if any(value != "All" for value in asked):
        raise bad_request(f"dryRun: Unsupported value: {asked}; only All")
    return bool(asked)


def _number(name: str, text: str) -> int:
    if not text.isdigit():
        raise bad_request(f"{name} must be a number, not {text!r}")
    return int(text)
