"""Kubernetes' rules for any object: merge patch, times, selectors. Knows no InferenceService."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from core.errors import InputError

GROUP = "serving.kserve.io"
VERSION = "v1beta1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "InferenceService"
PLURAL = "inferenceservices"

Object = dict[str, Any]
Key = tuple[str, str]
"""(namespace, name) of an object."""


def key_of(found: Mapping[str, Any]) -> Key:
    """Return the object's (namespace, name)."""
    return found["metadata"]["namespace"], found["metadata"]["name"]


def merge_patch(target: Any, patch: Any) -> Any:
    """Return `target` changed by a JSON merge patch (RFC 7386): null removes, lists replace."""
    if not isinstance(patch, dict):
        return deepcopy(patch)
    result = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = merge_patch(result.get(name), value)
    return result


def timestamp(seconds: float) -> str:
    """Return seconds since the epoch as Kubernetes writes times: RFC 3339, UTC, whole seconds."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def age(created: str, now_seconds: float) -> str:
    """Return the time since `created` as kubectl shows it: 42s, 7m, 3h, 9d."""
    seconds = max(0, int(now_seconds - datetime.fromisoformat(created).timestamp()))
    if seconds < 120:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m"
    if seconds < 48 * 3600:
        return f"{seconds // 3600}h"
    return f"{seconds // 86400}d"


@dataclass(frozen=True, slots=True)
class Requirement:
    """One comma-separated part of a selector. No value with `wanted` means: has the label."""

    name: str
    value: str | None
    wanted: bool

    def holds(self, values: Mapping[str, str]) -> bool:
        """Return whether `values` (labels or fields) satisfy this part."""
        found = self.name in values if self.value is None else values.get(self.name) == self.value
        return found == self.wanted


@dataclass(frozen=True, slots=True)
class Selector:
    """A labelSelector and a fieldSelector together (equality and existence forms)."""

    labels: tuple[Requirement, ...] = ()
    fields: tuple[Requirement, ...] = ()

    def matches(self, found: Object) -> bool:
        """Return whether the object is selected."""
        metadata = found["metadata"]
        fields = {f"metadata.{name}": metadata[name] for name in ("name", "namespace")}
        labels = metadata.get("labels") or {}
        return all(part.holds(labels) for part in self.labels) and all(
            part.holds(fields) for part in self.fields
        )


def read_selector(labels: str, fields: str) -> Selector:
    """Read both query parameters. Raises InputError for a form that is not understood."""
    selector = Selector(
        labels=tuple(_requirement(part) for part in labels.split(",") if part.strip()),
        fields=tuple(_requirement(part) for part in fields.split(",") if part.strip()),
    )
    for part in selector.fields:
        if part.name not in ("metadata.name", "metadata.namespace") or part.value is None:
            raise InputError(f"field label not supported: {part.name}; use metadata.name")
    return selector


def _requirement(text: str) -> Requirement:
    text = text.strip()
    if " in " in text or " notin " in text or "(" in text or ")" in text:
        raise InputError(f"selector {text!r} is not supported; use name=value, name!=value or name")
    for operator, wanted in (("!=", False), ("==", True), ("=", True)):
        name, found, value = text.partition(operator)
        if found:
            return Requirement(name.strip(), value.strip(), wanted)
    return Requirement(text.removeprefix("!").strip(), None, not text.startswith("!"))
