"""The fake InferenceServices behind the Kubernetes REST paths, on an ephemeral loopback port."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from core.errors import ConflictError, NotFoundError
from rollout.fake_inference_service import FakeInferenceServices

PREFIX = "/apis/serving.kserve.io/v1beta1/namespaces/"
MERGE_PATCH = "application/merge-patch+json"


class ControlPlane:
    """A server over `services`. `failing` is an HTTP status that every call gets instead."""

    def __init__(self, services: FakeInferenceServices, port: int = 0) -> None:
        self.services = services
        self.failing: int | None = None
        self.refused = 0
        self.requests: list[tuple[str, str, str]] = []
        self._lock = threading.Lock()
        plane = self

        class Handler(BaseHTTPRequestHandler):
            def _handle(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                text = self.rfile.read(length)
                content_type = self.headers.get("Content-Type", "")
                plane.requests.append((self.command, self.path, content_type))
                code, answer = plane.answer(
                    self.command, self.path, content_type, json.loads(text) if text else None
                )
                body = json.dumps(answer).encode()
                self.send_response(code)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST = do_PATCH = do_DELETE = _handle

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def answer(self, method: str, path: str, content_type: str, body: Any) -> tuple[int, Any]:
        if self.failing is not None:
            self.refused += 1
            return self.failing, {"kind": "Status", "message": "out of order"}
        parts = path.removeprefix(PREFIX).split("/")
        if not path.startswith(PREFIX) or parts[1] != "inferenceservices":
            return 404, {"kind": "Status", "message": "no such path"}
        namespace, name = parts[0], "".join(parts[2:])
        try:
            with self._lock:
                return self._call(method, namespace, name, content_type, body)
        except ConflictError as error:
            return 409, {"kind": "Status", "message": str(error)}
        except NotFoundError as error:
            return 404, {"kind": "Status", "message": str(error)}

    def _call(
        self, method: str, namespace: str, name: str, content_type: str, body: Any
    ) -> tuple[int, Any]:
        if method == "POST":
            return 201, self.services.create(namespace, body)
        if method == "PATCH" and content_type != MERGE_PATCH:
            return 415, {"kind": "Status", "message": content_type}
        if method == "PATCH":
            return 200, self.services.patch(namespace, name, body)
        found = self.services.get(namespace, name)
        if found is None:
            return 404, {"kind": "Status", "message": f"{name} not found"}
        if method == "DELETE":
            self.services.delete(namespace, name, body.get("preconditions", {}).get("uid", ""))
            return 200, {"kind": "Status", "status": "Success"}
        return 200, found
