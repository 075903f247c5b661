"""Facts are read as KServe writes them; patches change exactly what they must."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from release_scenarios import bundle, candidate

from core.errors import InputError
from rollout.inference_service import (
    ABSENT,
    merge,
    merge_difference,
    patch_body,
    read_facts,
    service_body,
    spec_with_candidate,
    spec_with_model_of,
)

VALUES = st.recursive(
    st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner),
    max_leaves=8,
)
OBJECTS = st.dictionaries(st.text(max_size=2), VALUES, max_size=4)


@given(OBJECTS, OBJECTS)
def test_the_difference_merged_gives_what_was_wanted(
    current: dict[str, Any], wanted: dict[str, Any]
) -> None:
    assert merge(current, merge_difference(current, wanted)) == wanted
    assert merge_difference(wanted, wanted) == {}


def live_body(**component: Any) -> dict[str, Any]:
    """As a cluster shows a canary of 10 %."""
    body = service_body("default", candidate("2"))
    body["metadata"] |= {"uid": "u", "resourceVersion": "41", "generation": 3}
    body["spec"]["predictor"]["canaryTrafficPercent"] = 10
    body["status"] = {
        "components": {
            "predictor": {
                "latestCreatedRevision": "assistant-predictor-00002",
                "latestReadyRevision": "assistant-predictor-00002",
                "latestRolledoutRevision": "assistant-predictor-00001",
                "traffic": [
                    {
                        "latestRevision": True,
                        "percent": 10,
                        "revisionName": "assistant-predictor-00002",
                    },
                    {
                        "latestRevision": False,
                        "percent": 90,
                        "revisionName": "assistant-predictor-00001",
                        "tag": "prev",
                    },
                ],
                **component,
            }
        },
        "conditions": [{"type": "Ready", "status": "True"}],
    }
    return body


def test_facts_show_a_canary_in_bundles() -> None:
    known = {
        "assistant-predictor-00001": (bundle("1"), "1"),
        "assistant-predictor-00002": (bundle("2"), "2"),
    }
    facts = read_facts(live_body(), known)
    assert facts.weights == {bundle("1"): 90, bundle("2"): 10}
    assert (facts.percent, facts.newest_percent, facts.newest_ready) == (10, 10, True)
    assert (facts.bundle_digest, facts.model_version) == (bundle("2"), "2")
    assert "canaryTrafficPercent" not in facts.spec["predictor"]
    assert not facts.settled()


def test_an_unknown_revision_is_never_taken_for_a_known_bundle() -> None:
    facts = read_facts(live_body(), {"assistant-predictor-00001": (bundle("1"), "1")})
    assert facts.weights == {bundle("1"): 90, "revision assistant-predictor-00002": 10}


@pytest.mark.parametrize(
    "status",
    [
        {"conditions": [{"type": "Ready", "status": "False", "reason": "RevisionFailed"}]},
        {"modelStatus": {"transitionStatus": "BlockedByFailedLoad"}},
        {"modelStatus": {"transitionStatus": "InvalidSpec", "lastFailureInfo": {"message": "x"}}},
    ],
)
def test_failures_are_recognised_in_either_place(status: dict[str, Any]) -> None:
    assert read_facts({**live_body(), "status": status}, {}).failure


@pytest.mark.parametrize("status", [{}, None, {"components": None}, {"conditions": None}])
def test_a_missing_status_is_unknown_and_not_an_error(status: Any) -> None:
    facts = read_facts({**live_body(), "status": status}, {})
    assert facts.traffic == ()
    assert not facts.newest_ready
    assert not facts.failure
    assert read_facts(None, {}) == ABSENT


def test_a_patch_keeps_what_it_does_not_know() -> None:
    body = live_body()
    model = body["spec"]["predictor"]["model"]
    model["args"] = ["--threads=2"]
    model["env"].insert(0, {"name": "LOG", "value": "1"})
    facts = read_facts(body, {})
    patch = patch_body(facts, spec_with_candidate(facts.spec, candidate("3")), 5)
    merged = merge(body, patch)["spec"]["predictor"]
    assert merged["model"]["args"] == ["--threads=2"]
    assert merged["model"]["env"] == [
        {"name": "LOG", "value": "1"},
        {"name": "SERIN_MODEL_VERSION", "value": "3"},
    ]
    assert merged["model"]["storageUri"].endswith(bundle("3"))
    assert merged["canaryTrafficPercent"] == 5
    assert patch["metadata"] == {"resourceVersion": "41"}
    back = spec_with_model_of(merged, facts.spec)
    assert back["predictor"]["model"] == facts.spec["predictor"]["model"]


def test_a_percent_only_patch_holds_nothing_else_and_null_removes() -> None:
    facts = read_facts(live_body(), {})
    patch = patch_body(facts, facts.spec, None)
    assert patch["spec"] == {"predictor": {"canaryTrafficPercent": None}}
    assert "canaryTrafficPercent" not in merge(live_body(), patch)["spec"]["predictor"]


@pytest.mark.parametrize("percent", [-1, 101, 250])
def test_a_percent_out_of_range_is_refused_here_because_kserve_accepts_it(percent: int) -> None:
    facts = read_facts(live_body(), {})
    with pytest.raises(InputError):
        patch_body(facts, facts.spec, percent)
