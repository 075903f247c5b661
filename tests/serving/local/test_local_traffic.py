"""KServe's contract in Knative mode, row by row: patches in, status and routes out."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import pytest

if TYPE_CHECKING:
    from tests.serving.local.local_simulation import Simulation

Traffic = list[tuple[int, int, str]]
Act = Callable[["Simulation"], None]


def patch(version: str | None = None, **predictor: int | None) -> Act:
    return lambda simulation: simulation.patch(version, **predictor)


def create(**predictor: int) -> Act:
    return lambda simulation: simulation.create("1", **predictor)


def ready(number: int) -> Act:
    return lambda simulation: simulation.ready(number)


def fails(number: int) -> Act:
    return lambda simulation: simulation.exits(number, times=3)


@dataclass(frozen=True)
class Step:
    """One act and everything that must hold after it.

    `revisions` are the numbers of latest created, latest ready, rolled out and rolled out before.
    """

    act: Act
    traffic: Traffic
    revisions: tuple[int, int, int, int]
    ready: tuple[str, str]
    model: Literal["InProgress", "UpToDate", "BlockedByFailedLoad"]
    arms: list[tuple[str, int, int]]


TRUE, LOADING = ("True", ""), ("Unknown", "")
FAILED = ("False", "RevisionFailed")
STABLE_1: Traffic = [(1, 100, "latest")]
ONE, BOTH = [("stable", 1, 100)], [("stable", 1, 95), ("canary", 2, 5)]

CREATED = [
    Step(create(), [], (1, 0, 0, 0), ("Unknown", "RevisionMissing"), "InProgress", []),
    Step(ready(1), STABLE_1, (1, 1, 1, 0), TRUE, "UpToDate", ONE),
]
CANARY = [
    *CREATED,
    Step(
        patch("2", canaryTrafficPercent=5), [(1, 5, "latest"), (1, 95, "prev")],
        (2, 1, 1, 0), LOADING, "InProgress", ONE,
    ),
    Step(ready(2), [(2, 5, "latest"), (1, 95, "prev")], (2, 2, 1, 0), TRUE, "UpToDate", BOTH),
]  # fmt: skip
AT_ZERO = Step(
    patch(canaryTrafficPercent=0), [(2, 0, "latest"), (1, 100, "prev")],
    (2, 2, 1, 0), TRUE, "UpToDate", [("stable", 1, 100), ("canary", 2, 0)],
)  # fmt: skip
PROMOTED = [
    *CANARY,
    Step(
        patch(canaryTrafficPercent=None), [(2, 100, "latest")],
        (2, 2, 2, 1), TRUE, "UpToDate", [("stable", 2, 100)],
    ),
]  # fmt: skip
BAD_CANARY = [
    *CANARY[:3],
    Step(
        fails(2), [(1, 5, "latest"), (1, 95, "prev")],
        (2, 1, 1, 0), FAILED, "BlockedByFailedLoad", ONE,
    ),
]  # fmt: skip

STORIES: dict[str, list[Step]] = {
    "first create": CREATED,
    "a percent is ignored before the first rollout": [
        Step(
            create(canaryTrafficPercent=10), [], (1, 0, 0, 0),
            ("Unknown", "RevisionMissing"), "InProgress", [],
        ),
        # Once rolled out the percent counts, but there is nobody else to send the rest to.
        Step(
            ready(1), [(1, 10, "latest"), (1, 90, "prev")], (1, 1, 1, 0), TRUE, "UpToDate", ONE,
        ),
    ],
    "start": CANARY,
    "raise": [
        *CANARY,
        Step(
            patch(canaryTrafficPercent=50), [(2, 50, "latest"), (1, 50, "prev")],
            (2, 2, 1, 0), TRUE, "UpToDate", [("stable", 1, 50), ("canary", 2, 50)],
        ),
    ],
    "raise to 100": [
        *CANARY,
        Step(
            patch(canaryTrafficPercent=100), [(2, 100, "latest")],
            (2, 2, 2, 1), TRUE, "UpToDate", [("stable", 2, 100)],
        ),
    ],
    "roll back": [*CANARY, AT_ZERO],
    "promote": PROMOTED,
    "bad canary": BAD_CANARY,
    "bad canary is taken back": [
        *BAD_CANARY,
        Step(
            patch("1", canaryTrafficPercent=0), [(1, 0, "latest"), (1, 100, "prev")],
            (3, 1, 1, 0), LOADING, "InProgress", ONE,
        ),
        Step(
            ready(3), [(3, 0, "latest"), (1, 100, "prev")], (3, 3, 1, 0), TRUE, "UpToDate",
            [("stable", 1, 100), ("canary", 3, 0)],
        ),
        Step(
            patch(canaryTrafficPercent=None), [(3, 100, "latest")],
            (3, 3, 3, 1), TRUE, "UpToDate", [("stable", 3, 100)],
        ),
    ],
    "roll back in full": [
        *CANARY,
        AT_ZERO,
        Step(
            patch("1", canaryTrafficPercent=0), [(2, 0, "latest"), (1, 100, "prev")],
            (3, 2, 1, 0), LOADING, "InProgress", [("stable", 1, 100), ("canary", 2, 0)],
        ),
        Step(
            ready(3), [(3, 0, "latest"), (1, 100, "prev")], (3, 3, 1, 0), TRUE, "UpToDate",
            [("stable", 1, 100), ("canary", 3, 0)],
        ),
        Step(
            patch(canaryTrafficPercent=None), [(3, 100, "latest")],
            (3, 3, 3, 1), TRUE, "UpToDate", [("stable", 3, 100)],
        ),
    ],
    "null while the rejected revision is the latest one promotes it": [
        *CANARY,
        AT_ZERO,
        Step(
            patch(canaryTrafficPercent=None), [(2, 100, "latest")],
            (2, 2, 2, 1), TRUE, "UpToDate", [("stable", 2, 100)],
        ),
    ],
    "a percent alone on a promoted service goes to the previous revision": [
        *PROMOTED,
        Step(
            patch(canaryTrafficPercent=10), [(2, 10, "latest"), (1, 90, "prev")],
            (2, 2, 1, 1), TRUE, "UpToDate", [("stable", 1, 90), ("canary", 2, 10)],
        ),
        Step(
            patch(canaryTrafficPercent=None), [(2, 100, "latest")],
            (2, 2, 2, 1), TRUE, "UpToDate", [("stable", 2, 100)],
        ),
    ],
    "a percent alone on the first revision changes nothing": [
        *CREATED,
        Step(
            patch(canaryTrafficPercent=10), [(1, 10, "latest"), (1, 90, "prev")],
            (1, 1, 1, 0), TRUE, "UpToDate", ONE,
        ),
    ],
    "another model without a percent is rolled out when it is ready": [
        *CREATED,
        Step(patch("2"), STABLE_1, (2, 1, 1, 0), LOADING, "InProgress", ONE),
        Step(
            ready(2), [(2, 100, "latest")], (2, 2, 2, 1), TRUE, "UpToDate", [("stable", 2, 100)],
        ),
    ],
    "a second release after a promotion": [
        *PROMOTED,
        Step(
            patch("3", canaryTrafficPercent=5), [(2, 5, "latest"), (2, 95, "prev")],
            (3, 2, 2, 1), LOADING, "InProgress", [("stable", 2, 100)],
        ),
        Step(
            ready(3), [(3, 5, "latest"), (2, 95, "prev")], (3, 3, 2, 1), TRUE, "UpToDate",
            [("stable", 2, 95), ("canary", 3, 5)],
        ),
    ],
    "another model in the middle of a canary": [
        *CANARY,
        Step(
            patch("3"), [(2, 5, "latest"), (1, 95, "prev")],
            (3, 2, 1, 0), LOADING, "InProgress", BOTH,
        ),
        Step(
            ready(3), [(3, 5, "latest"), (1, 95, "prev")], (3, 3, 1, 0), TRUE, "UpToDate",
            [("stable", 1, 95), ("canary", 3, 5)],
        ),
    ],
    "the first revision fails": [
        CREATED[0],
        Step(fails(1), [], (1, 0, 0, 0), FAILED, "BlockedByFailedLoad", []),
        Step(patch("2"), [], (2, 0, 0, 0), ("Unknown", "RevisionMissing"), "InProgress", []),
        Step(
            ready(2), [(2, 100, "latest")], (2, 2, 2, 0), TRUE, "UpToDate", [("stable", 2, 100)],
        ),
    ],
}  # fmt: skip


@pytest.mark.parametrize("story", STORIES)
def test_status_follows_kserve(story: str, simulation: "Simulation") -> None:
    for number, step in enumerate(STORIES[story], 1):
        step.act(simulation)
        where = f"{story}, step {number}"
        assert simulation.traffic() == step.traffic, where
        assert simulation.revisions() == step.revisions, where
        assert simulation.condition() == step.ready, where
        assert simulation.status["modelStatus"]["transitionStatus"] == step.model, where
        assert simulation.arms() == step.arms, where


def test_a_failed_load_is_explained(simulation: "Simulation") -> None:
    for step in BAD_CANARY:
        step.act(simulation)
    info = simulation.status["modelStatus"]["lastFailureInfo"]
    assert info["modelRevisionName"] == "assistant-00002"
    assert info["exitCode"] == 3
    assert "no weights" in info["message"]
    reasons = {entry["type"]: entry.get("reason") for entry in simulation.status["conditions"]}
    assert reasons["PredictorReady"] == reasons["Ready"] == "RevisionFailed"
    assert reasons["LatestDeploymentReady"] == "PredictorConfigurationReady not ready"
    assert simulation.condition("PredictorRouteReady") == TRUE


def test_annotations_and_labels_make_a_revision_as_on_a_cluster(simulation: "Simulation") -> None:
    for step in CREATED:
        step.act(simulation)
    simulation.annotate(note="released by hand")
    assert simulation.revisions()[0] == 2
    bookkeeping = {"kubectl.kubernetes.io/last-applied-configuration": "{}"}
    simulation.annotate(**bookkeeping)
    assert simulation.revisions()[0] == 2


def test_the_generation_counts_templates_and_targets_only(simulation: "Simulation") -> None:
    seen = []
    for step in PROMOTED:
        step.act(simulation)
        seen.append(simulation.status["observedGeneration"])
    # Create 1; rolled out without a percent: same; start 2; ready: same; promote 3.
    assert seen == [1, 1, 2, 2, 3]


def test_traffic_is_told_only_when_the_gateway_has_it(simulation: "Simulation") -> None:
    for step in CANARY:
        step.act(simulation)
    simulation.gateway_follows = False
    simulation.patch(canaryTrafficPercent=50)
    assert simulation.arms() == [("stable", 1, 50), ("canary", 2, 50)]
    assert simulation.traffic() == [(2, 5, "latest"), (1, 95, "prev")]
    assert simulation.condition() == ("Unknown", "IngressNotConfigured")
    simulation.gateway_follows = True
    simulation.settle()
    assert simulation.traffic() == [(2, 50, "latest"), (1, 50, "prev")]
    assert simulation.condition() == TRUE
