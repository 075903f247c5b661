"""The InferenceServices themselves, as an API server keeps them: versions, conflicts, history.

Knows no process and no traffic. Objects that it hands out are shared: nobody may change them.
"""

import asyncio
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec

from core.files import write_whole
from serving.local.admission import Admitted, admit
from serving.local.files import check_schema, read_as
from serving.local.objects import API_VERSION, KIND, Key, Object, key_of, merge_patch, timestamp
from serving.local.refusals import (
    Cause,
    already_exists,
    bad_request,
    conflict,
    expired,
    invalid,
    not_found,
)

SCHEMA_VERSION = 1
EVENTS_KEPT = 1000
OBJECTS_MAX = 200
FIXED_METADATA = ("name", "namespace", "uid", "creationTimestamp", "generation")
NO_STATUS: Object = {}
MODIFIED_SINCE = (
    "the object has been modified; please apply your changes to the latest version and try again"
)


@dataclass(frozen=True, slots=True)
class Event:
    """One change, at the resource version that it made."""

    version: int
    kind: Literal["ADDED", "MODIFIED", "DELETED"]
    found: Object


@dataclass(slots=True)
class Content:
    """What the file holds."""

    resource_version: int = 0
    objects: list[Object] = field(default_factory=list)
    schema_version: int = SCHEMA_VERSION


class Watcher:
    """A bounded queue of events for one watch request. None ends it."""

    def __init__(self, events_max: int) -> None:
        self.queue: asyncio.Queue[Event | None] = asyncio.Queue(events_max)
        self.ended = False

    def give(self, event: Event) -> None:
        """Hand on an event; a reader that is too slow is cut off rather than waited for."""
        if self.ended:
            return
        if self.queue.qsize() < self.queue.maxsize - 1:
            self.queue.put_nowait(event)
        else:
            self.end()

    def end(self) -> None:
        """Give the last word; one place in the queue is always left for it."""
        if not self.ended:
            self.ended = True
            self.queue.put_nowait(None)


class Store:
    """All InferenceServices of one home, kept in one file that is replaced at every change.

    The last `events_kept` changes are remembered for watches, and as many may wait for a reader.
    """

    def __init__(
        self,
        path: Path,
        on_change: Callable[[], None] = lambda: None,
        events_kept: int = EVENTS_KEPT,
    ) -> None:
        content = read_as(path, Content) or Content()
        check_schema(path, content.schema_version, SCHEMA_VERSION)
        self.path = path
        self.version = content.resource_version
        self.on_change = on_change
        self.events_kept = events_kept
        self._objects: dict[Key, Object] = {key_of(found): found for found in content.objects}
        self._events: deque[Event] = deque(maxlen=events_kept)
        self._watchers: set[Watcher] = set()
        # Events from before this process are not known.
        self._oldest = self.version

    def objects(self) -> dict[Key, Object]:
        """Return every object by (namespace, name)."""
        return dict(self._objects)

    def get(self, key: Key) -> Object:
        """Return one object. Raises Refusal 404."""
        if key not in self._objects:
            raise not_found(key[1])
        return self._objects[key]

    def create(self, namespace: str, given: Mapping[str, Any], dry_run: bool = False) -> Admitted:
        """Add an object. Raises Refusal 400, 409 (name taken) or 422."""
        metadata = _metadata_given(given, namespace, None)
        name = metadata["name"]
        if any(key[1] == name for key in self._objects):
            # One gateway address: the name alone finds the service, in whatever namespace.
            raise already_exists(name)
        if len(self._objects) >= OBJECTS_MAX:
            raise invalid(name, [Cause("metadata.name", f"at most {OBJECTS_MAX} services")])
        metadata["uid"] = str(uuid.uuid4())
        metadata["creationTimestamp"] = timestamp(time.time())
        metadata["generation"] = 1
        admitted = admit({**given, "metadata": metadata}, None)
        return self._put("ADDED", admitted, NO_STATUS, dry_run)

    def replace(self, key: Key, given: Mapping[str, Any], dry_run: bool = False) -> Admitted:
        """Put another object in the place of one; it must carry the resourceVersion it was read at.

        Raises Refusal 400, 404, 409 or 422.
        """
        old = self.get(key)
        metadata = _metadata_given(given, *key)
        if not metadata.get("resourceVersion"):
            message = "Invalid value: 0: must be specified for an update"
            raise invalid(key[1], [Cause("metadata.resourceVersion", message)])
        return self._change(old, {**given, "metadata": metadata}, dry_run)

    def patch(self, key: Key, patch: Mapping[str, Any], dry_run: bool = False) -> Admitted:
        """Apply a merge patch; a metadata.resourceVersion in it must be the current one.

        Raises Refusal 400, 404, 409 or 422.
        """
        old = self.get(key)
        given = merge_patch(old, patch)
        given["metadata"] = _metadata_given(given, *key)
        return self._change(old, given, dry_run)

    def delete(self, key: Key, uid: str = "", version: str = "", dry_run: bool = False) -> Object:
        """Remove an object, if it still has the uid and version given. Raises Refusal 404, 409."""
        old = self.get(key)
        for name, wanted in (("uid", uid), ("resourceVersion", version)):
            if wanted and old["metadata"][name] != wanted:
                raise conflict(key[1], f"the {name} in the precondition ({wanted}) is not current")
        if not dry_run:
            self.version += 1
            gone = {**old, "metadata": {**old["metadata"], "resourceVersion": str(self.version)}}
            self._save({name: found for name, found in self._objects.items() if name != key})
            self._announce(Event(self.version, "DELETED", gone))
        return old

    def set_status(self, key: Key, status: Object) -> bool:
        """Write the status of an object; return whether that changed anything."""
        old = self._objects.get(key)
        if old is None or old.get("status", NO_STATUS) == status:
            return False
        admitted = Admitted({name: old[name] for name in old if name != "status"}, ())
        self._put("MODIFIED", admitted, status, dry_run=False)
        return True

    def watch(self, since: int | None) -> tuple[Watcher, list[Event]]:
        """Open a watcher and return the events it missed since a resource version.

        None means: begin with every object as it is now. Raises Refusal 410 when the history does
        not reach back that far.
        """
        if since is None:
            missed = [
                Event(int(found["metadata"]["resourceVersion"]), "ADDED", found)
                for found in self._objects.values()
            ]
        elif since < self._oldest or since > self.version:
            raise expired(since)
        else:
            missed = [event for event in self._events if event.version > since]
        watcher = Watcher(self.events_kept)
        self._watchers.add(watcher)
        return watcher, missed

    def end_watches(self) -> None:
        """End every open watch: this process is about to stop."""
        for watcher in self._watchers:
            watcher.end()

    def close(self, watcher: Watcher) -> None:
        """Forget a watcher."""
        self._watchers.discard(watcher)

    def _change(self, old: Object, given: Mapping[str, Any], dry_run: bool) -> Admitted:
        name = old["metadata"]["name"]
        version = given["metadata"].get("resourceVersion")
        if version not in (None, old["metadata"]["resourceVersion"]):
            raise conflict(name, MODIFIED_SINCE)
        if given["metadata"].get("uid") not in (None, old["metadata"]["uid"]):
            raise conflict(name, "the uid is that of another object of this name")
        metadata = {**given["metadata"]}
        for fixed in FIXED_METADATA:
            metadata[fixed] = old["metadata"][fixed]
        admitted = admit({**given, "metadata": metadata}, old)
        if admitted.found["spec"] != old["spec"]:
            admitted.found["metadata"]["generation"] += 1
        status = old.get("status", NO_STATUS)
        same = {**admitted.found["metadata"], "resourceVersion": None}
        if admitted.found["spec"] == old["spec"] and same == {
            **old["metadata"],
            "resourceVersion": None,
        }:
            return Admitted(old, admitted.warnings)
        return self._put("MODIFIED", admitted, status, dry_run)

    def _put(
        self,
        kind: Literal["ADDED", "MODIFIED"],
        admitted: Admitted,
        status: Object,
        dry_run: bool,
    ) -> Admitted:
        version = self.version if dry_run else self.version + 1
        found = dict(admitted.found)
        found["metadata"] = {**found["metadata"], "resourceVersion": str(version)}
        if status:
            found["status"] = status
        if not dry_run:
            self.version = version
            self._save({**self._objects, key_of(found): found})
            self._announce(Event(version, kind, found))
        return Admitted(found, admitted.warnings)

    def _save(self, objects: dict[Key, Object]) -> None:
        # The file first: what was answered must survive a crash, what failed must not show.
        content = Content(self.version, list(objects.values()))
        write_whole(self.path, msgspec.json.encode(content), durable=True)
        self._objects = objects

    def _announce(self, event: Event) -> None:
        if len(self._events) == self._events.maxlen:
            self._oldest = self._events[0].version
        self._events.append(event)
        for watcher in tuple(self._watchers):
            watcher.give(event)
        self.on_change()


def _metadata_given(given: Mapping[str, Any], namespace: str, name: str | None) -> Object:
    metadata = given.get("metadata")
    if not isinstance(metadata, dict):
        raise bad_request("metadata must be an object with a name")
    if metadata.get("namespace") not in (None, "", namespace):
        raise bad_request(
            "the namespace of the provided object does not match the namespace sent on the request"
        )
    if name is not None and metadata.get("name") not in (None, name):
        raise bad_request(f"the name of the object does not match the name on the URL ({name})")
    chosen = name if name is not None else metadata.get("name")
    if not isinstance(chosen, str) or not chosen:
        raise invalid("", [Cause("metadata.name", "Required value: name", "FieldValueRequired")])
    if given.get("kind", KIND) != KIND or given.get("apiVersion", API_VERSION) != API_VERSION:
        raise bad_request(f"the object must be {API_VERSION} {KIND}")
    kept = ("labels", "annotations", "resourceVersion", "uid")
    return {
        **{field: metadata[field] for field in kept if metadata.get(field)},
        "name": chosen,
        "namespace": namespace,
    }
