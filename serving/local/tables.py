"""What `kubectl get` prints: meta.k8s.io Tables with the columns of KServe's own definition."""

from collections.abc import Sequence
from typing import Any

from serving.local.objects import Object, age

MIME = "application/json"
COLUMNS = (
    ("Name", "string", 0, "the name"),
    ("URL", "string", 0, "the one address for clients"),
    ("Ready", "string", 0, "whether the latest revision and its routes are ready"),
    ("Prev", "integer", 0, "percent of the previous revision"),
    ("Latest", "integer", 0, "percent of the latest ready revision"),
    ("PrevRolledoutRevision", "string", 0, "the previous revision"),
    ("LatestReadyRevision", "string", 0, "the latest ready revision"),
    ("Age", "date", 0, "time since it was created"),
)


def table(
    objects: Sequence[Object], version: int, now_seconds: float, heads: bool = True
) -> Object:
    """Return objects as a Table; a watch sends the column heads with its first event only."""
    return {
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": {"resourceVersion": str(version)},
        "columnDefinitions": [
            {"name": name, "type": kind, "format": "name" if name == "Name" else "",
             "description": description, "priority": priority}
            for name, kind, priority, description in COLUMNS
        ] if heads else None,
        "rows": [
            {"cells": _cells(found, now_seconds), "object": _partial(found)} for found in objects
        ],
    }  # fmt: skip


def wants_table(accept: str) -> bool:
    """Return whether an Accept header asks for a Table before plain JSON."""
    first = accept.split(",")[0].replace(" ", "")
    return first.startswith(MIME) and "as=Table" in first and "g=meta.k8s.io" in first


def _cells(found: Object, now_seconds: float) -> list[Any]:
    status = found.get("status") or {}
    traffic = status.get("components", {}).get("predictor", {}).get("traffic") or ()
    nothing: dict[str, Any] = {}
    previous = next((entry for entry in traffic if entry.get("tag") == "prev"), nothing)
    latest = next((entry for entry in traffic if entry.get("latestRevision")), nothing)
    ready = next(
        (entry["status"] for entry in status.get("conditions", ()) if entry["type"] == "Ready"), ""
    )
    return [
        found["metadata"]["name"],
        status.get("url", ""),
        ready,
        previous.get("percent"),
        latest.get("percent"),
        previous.get("revisionName", ""),
        latest.get("revisionName", ""),
        age(found["metadata"]["creationTimestamp"], now_seconds),
    ]


def _partial(found: Object) -> Object:
    return {
        "kind": "PartialObjectMetadata",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": found["metadata"],
    }
