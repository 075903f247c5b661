"""The store behaves as an API server: versions, conflicts, history, and a file that survives."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from core.errors import IntegrityError
from serving.local.objects import age, merge_patch, read_selector, timestamp
from serving.local.refusals import Refusal
from serving.local.store import Store

if TYPE_CHECKING:
    from tests.serving.local.local_plane import ControlPlane, Planes

KEY = ("default", "assistant")
EVENTS_KEPT = 10
Given = Callable[..., dict[str, Any]]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "services.json", events_kept=EVENTS_KEPT)


@pytest.fixture
def given(planes: "Planes") -> Given:
    made: ControlPlane = planes()

    def build(percent: int | None = None) -> dict[str, Any]:
        predictor = {} if percent is None else {"canaryTrafficPercent": percent}
        return made.service("file:///bundles/a", "1", **predictor)

    return build


def percent(value: int | None, **metadata: str) -> dict[str, Any]:
    return {"metadata": metadata, "spec": {"predictor": {"canaryTrafficPercent": value}}}


def refusal(code: int, act: Callable[[], object]) -> Refusal:
    with pytest.raises(Refusal) as refused:
        act()
    assert refused.value.code == code
    return refused.value


def test_a_patch_at_an_old_version_is_a_conflict(store: Store, given: Given) -> None:
    version = store.create("default", given()).found["metadata"]["resourceVersion"]
    changed = store.patch(KEY, percent(5, resourceVersion=version)).found
    assert changed["spec"]["predictor"]["canaryTrafficPercent"] == 5
    stale = refusal(409, lambda: store.patch(KEY, percent(50, resourceVersion=version)))
    assert stale.reason == "Conflict"
    assert "the object has been modified" in str(stale)
    assert store.get(KEY) == changed


def test_a_status_change_is_a_new_version(store: Store, given: Given) -> None:
    version = store.create("default", given()).found["metadata"]["resourceVersion"]
    assert store.set_status(KEY, {"url": "a"})
    assert not store.set_status(KEY, {"url": "a"})
    refusal(409, lambda: store.patch(KEY, percent(5, resourceVersion=version)))
    assert store.get(KEY)["metadata"]["generation"] == 1


def test_only_the_spec_raises_the_generation(store: Store, given: Given) -> None:
    store.create("default", given())
    labelled = store.patch(KEY, {"metadata": {"labels": {"tier": "gold"}}}).found
    assert labelled["metadata"]["generation"] == 1
    assert store.patch(KEY, percent(5)).found["metadata"]["generation"] == 2


def test_a_patch_without_a_change_is_no_new_version(store: Store, given: Given) -> None:
    before = store.create("default", given(5)).found
    assert store.patch(KEY, percent(5)).found == before
    assert store.version == int(before["metadata"]["resourceVersion"])


def test_what_the_server_owns_cannot_be_written(store: Store, given: Given) -> None:
    before = store.create("default", given()).found
    patch = {
        "metadata": {"creationTimestamp": "2000-01-01T00:00:00Z", "generation": 9},
        "status": {"url": "mine"},
    }
    assert store.patch(KEY, patch).found == before
    refusal(400, lambda: store.patch(KEY, {"metadata": {"name": "other"}}))
    refusal(400, lambda: store.patch(KEY, {"metadata": {"namespace": "other"}}))
    refusal(409, lambda: store.patch(KEY, {"metadata": {"uid": "other"}}))


def test_a_name_is_taken_once_in_all_namespaces(store: Store, given: Given) -> None:
    store.create("default", given())
    assert refusal(409, lambda: store.create("default", given())).reason == "AlreadyExists"
    refusal(409, lambda: store.create("elsewhere", given()))


def test_replace_needs_the_version_that_was_read(store: Store, given: Given) -> None:
    found = store.create("default", given()).found
    refusal(422, lambda: store.replace(KEY, given(5)))
    whole = merge_patch(given(5), {"metadata": dict(found["metadata"])})
    assert store.replace(KEY, whole).found["metadata"]["uid"] == found["metadata"]["uid"]
    refusal(409, lambda: store.replace(KEY, whole))


def test_a_missing_object_is_not_found(store: Store) -> None:
    missing = refusal(404, lambda: store.patch(KEY, percent(5)))
    assert str(missing) == 'inferenceservices.serving.kserve.io "assistant" not found'


def test_delete_honours_its_preconditions(store: Store, given: Given) -> None:
    found = store.create("default", given()).found
    refusal(409, lambda: store.delete(KEY, uid="another"))
    refusal(409, lambda: store.delete(KEY, version="0"))
    store.delete(KEY, uid=found["metadata"]["uid"])
    refusal(404, lambda: store.get(KEY))


def test_a_dry_run_changes_nothing(store: Store, given: Given) -> None:
    store.create("default", given(), dry_run=True)
    assert store.objects() == {}
    store.create("default", given())
    before = store.get(KEY)
    assert store.patch(KEY, percent(5), dry_run=True).found["spec"] != before["spec"]
    store.delete(KEY, dry_run=True)
    assert store.get(KEY) == before


def test_the_file_brings_everything_back(store: Store, given: Given) -> None:
    store.create("default", given())
    store.patch(KEY, percent(5))
    store.set_status(KEY, {"url": "a"})
    again = Store(store.path)
    assert again.objects() == store.objects()
    assert again.version == store.version == 3


def test_a_file_of_another_schema_is_refused(store: Store, given: Given) -> None:
    store.create("default", given())
    store.path.write_bytes(store.path.read_bytes().replace(b'_version":1', b'_version":2'))
    with pytest.raises(IntegrityError, match="schema version 2"):
        Store(store.path)


def test_a_write_that_fails_changes_nothing(store: Store, given: Given) -> None:
    store.create("default", given())
    before = store.get(KEY)
    content = store.path.read_bytes()
    folder = store.path.parent
    store.path = folder / "gone" / "services.json"
    with pytest.raises(OSError, match="No such file"):
        store.patch(KEY, percent(5))
    assert store.get(KEY) == before
    assert (folder / "services.json").read_bytes() == content


def test_a_watch_gets_what_it_missed_and_what_comes(store: Store, given: Given) -> None:
    start = store.version
    store.create("default", given())
    store.patch(KEY, percent(5))
    watcher, missed = store.watch(start)
    assert [(event.kind, event.version) for event in missed] == [("ADDED", 1), ("MODIFIED", 2)]
    store.delete(KEY)
    event = watcher.queue.get_nowait()
    assert event is not None
    assert (event.kind, event.version) == ("DELETED", 3)
    assert event.found["metadata"]["resourceVersion"] == "3"
    _, missed = store.watch(3)
    assert missed == []


def test_a_watch_from_before_this_process_must_list_again(store: Store, given: Given) -> None:
    store.create("default", given())
    store.patch(KEY, percent(5))
    again = Store(store.path)
    assert refusal(410, lambda: again.watch(1)).reason == "Expired"
    _, missed = again.watch(None)
    assert [event.kind for event in missed] == ["ADDED"]
    again.watch(again.version)


def test_a_watch_beyond_the_kept_history_must_list_again(store: Store, given: Given) -> None:
    store.create("default", given())
    for number in range(20):
        store.set_status(KEY, {"number": number})
    refusal(410, lambda: store.watch(10))
    _, missed = store.watch(11)
    assert [event.version for event in missed] == list(range(12, 22))


def test_a_reader_that_is_too_slow_is_cut_off(store: Store, given: Given) -> None:
    watcher, _ = store.watch(None)
    store.create("default", given())
    for number in range(EVENTS_KEPT + 5):
        store.set_status(KEY, {"number": number})
    assert watcher.queue.qsize() == EVENTS_KEPT
    events = [watcher.queue.get_nowait() for _ in range(EVENTS_KEPT)]
    assert events[-1] is None
    assert None not in events[:-1]


@pytest.mark.parametrize(
    ("target", "patch", "result"),
    [
        # RFC 7386, appendix A.
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        (["a", "b"], ["c", "d"], ["c", "d"]),
        ({"a": "b"}, ["c"], ["c"]),
        ({"a": "foo"}, None, None),
        ({"a": "foo"}, "bar", "bar"),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_merge_patches_follow_the_rfc(target: Any, patch: Any, result: Any) -> None:
    assert merge_patch(target, patch) == result


@pytest.mark.parametrize(
    ("labels", "fields", "selected"),
    [
        ("", "", True),
        ("tier=gold", "", True),
        ("tier==gold,env", "", True),
        ("tier!=gold", "", False),
        ("!env", "", False),
        ("missing", "", False),
        ("", "metadata.name=assistant", True),
        ("", "metadata.name!=assistant", False),
        ("tier=gold", "metadata.namespace=other", False),
    ],
)
def test_selectors(labels: str, fields: str, selected: bool) -> None:
    found = {
        "metadata": {
            "name": "assistant", "namespace": "default", "labels": {"tier": "gold", "env": "x"}
        }
    }  # fmt: skip
    assert read_selector(labels, fields).matches(found) is selected


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (119, "119s"), (120, "2m"), (7200, "2h"), (200000, "2d")]
)
def test_ages_read_as_in_kubectl(seconds: int, text: str) -> None:
    assert age(timestamp(1_000_000), 1_000_000 + seconds) == text
