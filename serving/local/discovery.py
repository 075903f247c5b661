"""What an API server says of itself, as far as kubectl and client libraries ask."""

import platform
from typing import Any

from serving.local.objects import API_VERSION, GROUP, KIND, PLURAL, VERSION, Object

# As KServe 0.21 asks of its cluster; clients compare it with their own version and warn.
KUBERNETES_MINOR = "32"
OPENAPI_TITLE = "Serin one-machine KServe"


def version() -> Object:
    """Return /version."""
    return {
        "major": "1",
        "minor": KUBERNETES_MINOR,
        "gitVersion": f"v1.{KUBERNETES_MINOR}.0+serin",
        "gitCommit": "",
        "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "",
        "compiler": "",
        "platform": f"linux/{platform.machine()}",
    }


def core_versions() -> Object:
    """Return /api."""
    return {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}


def core_resources() -> Object:
    """Return /api/v1: no pods, only what `kubectl describe` and namespace checks ask for."""
    return {
        "kind": "APIResourceList",
        "groupVersion": "v1",
        "resources": [
            _resource("events", "Event", True, ["get", "list"], shortNames=["ev"]),
            _resource("namespaces", "Namespace", False, ["get", "list"], shortNames=["ns"]),
        ],
    }


def groups() -> Object:
    """Return /apis."""
    entry = {name: value for name, value in group().items() if name not in ("kind", "apiVersion")}
    return {"kind": "APIGroupList", "apiVersion": "v1", "groups": [entry]}


def group() -> Object:
    """Return /apis/serving.kserve.io."""
    only = {"groupVersion": API_VERSION, "version": VERSION}
    return {
        "kind": "APIGroup",
        "apiVersion": "v1",
        "name": GROUP,
        "versions": [only],
        "preferredVersion": only,
    }


def group_resources() -> Object:
    """Return /apis/serving.kserve.io/v1beta1."""
    verbs = ["create", "delete", "get", "list", "patch", "update", "watch"]
    return {
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": API_VERSION,
        "resources": [
            _resource(
                PLURAL, KIND, True, verbs, singularName="inferenceservice", shortNames=["isvc"]
            ),
            _resource(f"{PLURAL}/status", KIND, True, ["get"]),
        ],
    }


def openapi() -> Object:
    """Return /openapi/v2: valid and empty, so that clients leave the checks to this server."""
    return {
        "swagger": "2.0",
        "info": {"title": OPENAPI_TITLE, "version": f"v1.{KUBERNETES_MINOR}.0"},
        "paths": {},
        "definitions": {},
    }


def openapi_protobuf() -> bytes:
    """Return the same document as a protobuf message, the only form that kubectl reads.

    Fields of gnostic's openapi_v2.Document: swagger 1, info 2 (title 1, version 2), paths 8,
    definitions 9; every one of them is length-delimited.
    """
    info = openapi()["info"]
    described = _delimited(1, info["title"].encode()) + _delimited(2, info["version"].encode())
    return (
        _delimited(1, b"2.0") + _delimited(2, described) + _delimited(8, b"") + _delimited(9, b"")
    )


def namespace(name: str) -> Object:
    """Return a namespace: every one exists here, as nothing lives in it but services."""
    return {
        "kind": "Namespace",
        "apiVersion": "v1",
        "metadata": {"name": name},
        "status": {"phase": "Active"},
    }


def _resource(
    name: str, kind: str, namespaced: bool, verbs: list[str], **more: Any
) -> dict[str, Any]:
    return {
        "name": name,
        "singularName": "",
        "namespaced": namespaced,
        "kind": kind,
        "verbs": verbs,
        **more,
    }


def _delimited(number: int, data: bytes) -> bytes:
    if len(data) > 127:
        raise ValueError("a length above 127 needs a longer varint")
    return bytes([number << 3 | 2, len(data)]) + data
