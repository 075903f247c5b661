"""More and fewer processes of a revision: no new revision, and nobody is sent to one that ends."""

import os
import signal
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.serving.local.local_plane import HTTP, ControlPlane, WaitFor
    from tests.serving.local.local_simulation import Simulation
else:
    from local_plane import HTTP


def test_more_replicas_are_more_processes_of_the_same_revision(simulation: "Simulation") -> None:
    simulation.create("1")
    simulation.ready(1)
    simulation.patch(minReplicas=2)
    assert simulation.revisions()[:2] == (1, 1)
    assert simulation.running() == [1, 1]
    assert [endpoint["ready"] for endpoint in endpoints(simulation)] == [True, False]
    assert simulation.condition() == ("True", "")
    simulation.ready(1, index=1)
    assert [endpoint["ready"] for endpoint in endpoints(simulation)] == [True, True]


def test_a_spare_replica_leaves_the_routes_before_it_is_stopped(simulation: "Simulation") -> None:
    simulation.create("1", minReplicas=2)
    simulation.ready(1, index=0)
    simulation.ready(1, index=1)
    simulation.gateway_follows = False
    simulation.patch(minReplicas=1)
    simulation.at(50)
    assert len(endpoints(simulation)) == 1
    assert not simulation.signals
    simulation.gateway_follows = True
    simulation.settle()
    simulation.at(50 + simulation.config.drain_seconds)
    assert [action.kind for action in simulation.signals] == ["unroute", "terminate"]
    assert {action.process_id for action in simulation.signals} == {"assistant-00001-1"}


def test_a_spare_replica_serves_on_while_the_others_are_not_ready(simulation: "Simulation") -> None:
    simulation.create("1", minReplicas=2)
    simulation.ready(1, index=0)
    simulation.ready(1, index=1)
    simulation.exits(1, index=0)
    simulation.patch(minReplicas=1)
    simulation.at(0.5)
    assert [endpoint["ready"] for endpoint in endpoints(simulation)] == [True]
    assert not simulation.signals
    simulation.at(20)
    simulation.ready(1, index=0)
    simulation.at(40)
    assert {action.process_id for action in simulation.signals} == {"assistant-00001-1"}


def test_a_revision_that_had_too_many_replicas_is_made_again_with_fewer(
    simulation: "Simulation",
) -> None:
    simulation.create("1", minReplicas=9)
    simulation.patch(minReplicas=2)
    assert simulation.revisions()[0] == 2
    assert simulation.running() == [2, 2]


def endpoints(simulation: "Simulation") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = simulation.routes["assistant"]["arms"][0]["endpoints"]
    return found


def test_replicas_come_and_go_as_processes_of_one_revision(
    plane: "ControlPlane", wait_for: "WaitFor"
) -> None:
    plane.create(plane.bundle("a"))
    plane.wait_ready()
    plane.predictor(minReplicas=2)
    wait_for(lambda: set(plane.processes()) == {"00001", "00001.1"}, "a second process")
    first = plane.processes()["00001"]
    plane.predictor(minReplicas=1)
    wait_for(lambda: plane.processes() == {"00001": first}, "one process again")


def test_predictors_that_end_unasked_are_counted(
    plane: "ControlPlane", wait_for: "WaitFor"
) -> None:
    plane.create(plane.bundle("a"), minReplicas=2)
    plane.wait_ready()
    wait_for(lambda: len(plane.processes()) == 2, "both processes")
    before = exits(plane)
    os.kill(plane.processes()["00001"], signal.SIGKILL)
    wait_for(lambda: exits(plane) > before, "one exit more")


def exits(plane: "ControlPlane") -> int:
    series = 'serin_control_predictor_exits_total{service="assistant",revision="assistant-00001"} '
    lines = HTTP.get(plane.url + "/metrics").text.splitlines()
    return sum(int(float(line.removeprefix(series))) for line in lines if line.startswith(series))
