"""Which processes run, when they are stopped, and what a revision's failure is, as pure plans."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from core.errors import InputError
from serving.local.revisions import bundle_folder

if TYPE_CHECKING:
    from tests.serving.local.local_simulation import Simulation


def promoted(simulation: "Simulation") -> None:
    """Bring the service to revision 2, with revision 1 before it."""
    simulation.create("1")
    simulation.ready(1)
    simulation.patch("2", canaryTrafficPercent=5)
    simulation.ready(2)
    simulation.patch(canaryTrafficPercent=None)


def test_the_previous_revision_stays_warm_and_older_ones_stop(simulation: "Simulation") -> None:
    promoted(simulation)
    assert simulation.running() == [1, 2]
    simulation.patch("3")
    simulation.ready(3)
    assert simulation.running() == [1, 2, 3]
    simulation.at(2)
    assert simulation.running() == [2, 3]


def test_a_process_is_stopped_only_when_no_route_leads_to_it(simulation: "Simulation") -> None:
    promoted(simulation)
    simulation.gateway_follows = False
    simulation.patch("3")
    simulation.ready(3)
    simulation.at(100)
    assert simulation.running() == [1, 2, 3]
    simulation.gateway_follows = True
    simulation.settle()
    assert simulation.running() == [1, 2, 3]
    simulation.at(100 + simulation.config.drain_seconds)
    assert simulation.running() == [2, 3]
    assert [action.kind for action in simulation.signals] == ["unroute", "terminate"]


def test_what_does_not_end_is_killed_after_the_grace(simulation: "Simulation") -> None:
    promoted(simulation)
    simulation.patch("3")
    simulation.ready(3)
    simulation.at(2)
    simulation.at(2 + simulation.config.stop_grace_seconds - 1)
    assert [action.kind for action in simulation.signals] == ["unroute", "terminate"]
    simulation.at(2 + simulation.config.stop_grace_seconds)
    assert [action.kind for action in simulation.signals] == ["unroute", "terminate", "kill"]
    assert {action.process_id for action in simulation.signals} == {"assistant-00001-0"}


def test_a_rejected_canary_is_stopped_after_the_full_rollback(simulation: "Simulation") -> None:
    simulation.create("1")
    simulation.ready(1)
    simulation.patch("2", canaryTrafficPercent=5)
    simulation.ready(2)
    simulation.patch(canaryTrafficPercent=0)
    simulation.patch("1", canaryTrafficPercent=0)
    assert simulation.running() == [1, 2, 3]
    simulation.ready(3)
    simulation.patch(canaryTrafficPercent=None)
    simulation.at(2)
    assert simulation.running() == [1, 3]


def test_a_canary_that_is_overtaken_while_loading_stops(simulation: "Simulation") -> None:
    simulation.create("1")
    simulation.ready(1)
    simulation.patch("2", canaryTrafficPercent=5)
    simulation.patch("3", canaryTrafficPercent=5)
    simulation.at(2)
    assert simulation.running() == [1, 3]


def test_a_deleted_service_stops_all(simulation: "Simulation") -> None:
    promoted(simulation)
    simulation.objects.clear()
    simulation.settle()
    assert simulation.routes == {}
    simulation.at(2)
    assert simulation.running() == []
    assert simulation.states == {}


def test_processes_of_nobody_are_stopped(simulation: "Simulation") -> None:
    simulation.create("1")
    simulation.ready(1)
    orphan = replace(simulation.processes[simulation.slot(1)], process_id="orphan")
    slot = replace(orphan.slot, uid="another")
    simulation.processes[slot] = replace(orphan, slot=slot, ready_at=None, url="")
    simulation.settle()
    assert simulation.signals[-1].process_id == "orphan"
    assert simulation.signals[-1].kind == "terminate"


def test_the_stop_annotation_takes_everything_down(simulation: "Simulation") -> None:
    promoted(simulation)
    simulation.annotate(**{"serving.kserve.io/stop": "true"})
    simulation.at(2)
    assert simulation.running() == []
    assert simulation.condition() == ("False", "Stopped")
    simulation.ended(1)
    simulation.ended(2)
    simulation.annotate(**{"serving.kserve.io/stop": None})
    assert simulation.running() == [1, 2]
    simulation.ready(2)
    assert simulation.traffic() == [(2, 100, "latest")]
    assert simulation.condition() == ("True", "")


def test_each_replica_is_a_process_and_all_must_be_ready(simulation: "Simulation") -> None:
    simulation.create("1", minReplicas=3)
    assert simulation.running() == [1, 1, 1]
    simulation.ready(1, 0)
    simulation.ready(1, 1)
    assert simulation.condition()[0] == "Unknown"
    simulation.ready(1, 2)
    assert simulation.condition() == ("True", "")
    endpoints = simulation.routes["assistant"]["arms"][0]["endpoints"]
    assert [endpoint["ready"] for endpoint in endpoints] == [True, True, True]
    assert len({endpoint["url"] for endpoint in endpoints}) == 3
    simulation.exits(1, index=1)
    endpoints = simulation.routes["assistant"]["arms"][0]["endpoints"]
    assert len(endpoints) == 2
    assert simulation.condition() == ("True", "")


def test_more_replicas_than_the_machine_allows_fail_the_revision(simulation: "Simulation") -> None:
    simulation.create("1", minReplicas=9)
    assert simulation.running() == []
    assert simulation.condition() == ("False", "RevisionFailed")
    assert "replicas_max" in simulation.status["modelStatus"]["lastFailureInfo"]["message"]


def test_zero_replicas_give_the_memory_back_at_zero_percent(simulation: "Simulation") -> None:
    simulation.create("1")
    simulation.ready(1)
    simulation.patch("2", canaryTrafficPercent=5, minReplicas=0)
    assert simulation.running() == [1, 2]
    simulation.ready(2)
    simulation.patch(canaryTrafficPercent=0)
    simulation.at(2)
    assert simulation.running() == [1]
    assert simulation.traffic() == [(2, 0, "latest"), (1, 100, "prev")]
    simulation.ended(2)
    simulation.patch(canaryTrafficPercent=5)
    assert simulation.running() == [1, 2]


def test_exits_before_readiness_fail_the_revision_at_the_limit(simulation: "Simulation") -> None:
    simulation.create("1")
    simulation.exits(1, times=1)
    assert simulation.running() == []
    assert simulation.condition("PredictorConfigurationReady")[0] == "Unknown"
    assert simulation.status["modelStatus"]["transitionStatus"] == "InProgress"
    simulation.at(1)
    assert simulation.running() == [1]
    simulation.exits(1, times=3)
    assert simulation.condition() == ("False", "RevisionFailed")
    simulation.at(1000)
    assert simulation.running() == []


def test_a_revision_must_be_ready_before_its_deadline(simulation: "Simulation") -> None:
    simulation.create("1")
    simulation.at(simulation.config.progress_deadline_seconds - 1)
    assert simulation.condition()[0] == "Unknown"
    simulation.at(simulation.config.progress_deadline_seconds)
    assert simulation.condition() == ("False", "RevisionFailed")
    assert "not ready within 120 seconds" in str(simulation.status["conditions"])
    assert simulation.running() == []


def test_another_bundle_than_expected_fails_the_revision(simulation: "Simulation") -> None:
    simulation.create("1")
    slot = simulation.slot(1)
    fault = "the process reports bundle abc, expected def"
    simulation.processes[slot] = replace(simulation.processes[slot], fault=fault)
    simulation.settle()
    assert simulation.condition() == ("False", "RevisionFailed")
    assert fault in str(simulation.status["conditions"])
    assert simulation.running() == []


def test_a_crash_shows_until_the_process_is_back(simulation: "Simulation") -> None:
    simulation.create("1")
    simulation.ready(1)
    simulation.exits(1)
    assert simulation.condition() == ("False", "RevisionFailed")
    assert simulation.status["modelStatus"]["transitionStatus"] == "BlockedByFailedLoad"
    assert simulation.arms() == [("stable", 1, 100)]
    assert simulation.routes["assistant"]["arms"][0]["endpoints"] == []
    simulation.at(1)
    simulation.ready(1)
    assert simulation.condition() == ("True", "")
    assert simulation.status["modelStatus"]["transitionStatus"] == "UpToDate"
    assert simulation.status["modelStatus"]["lastFailureInfo"]["exitCode"] == 3


def test_a_crash_of_the_previous_revision_is_a_route_failure(simulation: "Simulation") -> None:
    simulation.create("1")
    simulation.ready(1)
    simulation.patch("2", canaryTrafficPercent=5)
    simulation.ready(2)
    simulation.exits(1)
    assert simulation.condition("PredictorConfigurationReady") == ("True", "")
    assert simulation.condition("PredictorRouteReady") == ("False", "RevisionMissing")
    assert simulation.traffic() == [(2, 5, "latest"), (1, 95, "prev")]


def test_a_hung_process_is_killed_and_a_loading_one_is_not(simulation: "Simulation") -> None:
    simulation.create("1")
    simulation.ready(1)
    simulation.patch("2", canaryTrafficPercent=5)
    slot = simulation.slot(1)
    simulation.processes[slot] = replace(simulation.processes[slot], ready=False)
    simulation.at(simulation.config.hung_seconds_max - 1)
    assert simulation.signals == []
    simulation.at(simulation.config.hung_seconds_max)
    assert [(action.kind, action.process_id) for action in simulation.signals] == [
        ("kill", "assistant-00001-0")
    ]


def test_routes_name_what_serves(simulation: "Simulation") -> None:
    simulation.create("7")
    simulation.ready(1, digest="a" * 64)
    assert simulation.routes == {
        "assistant": {
            "arms": [
                {
                    "arm": "stable",
                    "revision": "assistant-00001",
                    "percent": 100,
                    "model_version": "7",
                    "bundle_digest": "a" * 64,
                    "endpoints": [{"url": "http://127.0.0.1:10010", "ready": True}],
                }
            ]
        }
    }


def test_only_revisions_that_are_needed_are_remembered(simulation: "Simulation") -> None:
    simulation.create("1")
    simulation.ready(1)
    for version in range(2, 30):
        simulation.patch(str(version), canaryTrafficPercent=0)
    assert sorted(simulation.state.revisions) == ["assistant-00001", "assistant-00029"]
    assert simulation.traffic() == [(1, 0, "latest"), (1, 100, "prev")]


@pytest.mark.parametrize(
    ("uri", "why"),
    [
        ("s3://models/a", "not a local file"),
        ("file://elsewhere/a", "not a local file"),
        ("bundles/a", "absolute path"),
        ("file://{root}/../secret", "'..'"),
        ("file://{root}/%2e%2e/secret", "'..'"),
        ("/etc", "not below"),
        ("file://{root}", "not below"),
        ("file://{root}/link", "not below"),
        ("file://{root}/missing", "no such folder"),
        ("file://{root}/a?b=c", "not a local file"),
    ],
)
def test_a_storage_address_must_lie_below_the_roots(uri: str, why: str, tmp_path: Path) -> None:
    root = tmp_path / "bundles"
    (root / "a").mkdir(parents=True)
    (tmp_path / "secret").mkdir()
    (root / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(InputError, match=why):
        bundle_folder(uri.format(root=root), [root])


@pytest.mark.parametrize("uri", ["file://{root}/a", "{root}/a", "file://{root}/a/"])
def test_a_storage_address_below_the_roots_is_a_folder(uri: str, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    assert bundle_folder(uri.format(root=tmp_path), [tmp_path]) == tmp_path / "a"


def test_a_bad_storage_address_fails_the_revision(simulation: "Simulation") -> None:
    simulation.create("1")
    simulation.ready(1)
    model = simulation.model("2") | {"storageUri": "/etc"}
    simulation.objects[simulation.key]["spec"]["predictor"]["model"] = model
    simulation.settle()
    assert simulation.condition() == ("False", "RevisionFailed")
    assert "/etc" in str(simulation.status["conditions"])
    assert simulation.traffic() == [(1, 100, "latest")]
