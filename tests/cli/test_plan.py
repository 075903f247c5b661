"""The plan of a stack: which parts, on which ports, what is adopted, what is somebody else's."""

import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from cli.children import ADDRESS_OF, PORT_PARTS, WATCHING_PARTS
from cli.plan import Plan, plan_stack
from cli.ports import bind
from cli.processes import Identity, identify
from cli.stack_file import ChildRecord, StackFile
from core.errors import ConfigurationError
from core.settings import Settings

PORTS = ("GATEWAY", "CONTROL", "MLFLOW", "PREFECT", "PROMETHEUS", "EXPORTER")
FREE = {f"SERIN_PORT_{name}": "0" for name in PORTS}
EVERY_PART = ["prefect", "mlflow", "gateway", "control", "keeper", "worker"]


@pytest.fixture
def plans(tmp_path: Path) -> Iterator["Planner"]:
    planner = Planner(tmp_path)
    yield planner
    planner.close()


class Planner:
    def __init__(self, home: Path) -> None:
        self.home = home
        self.made: list[Plan] = []

    def plan(
        self,
        environ: Mapping[str, str] | None = None,
        before: StackFile | None = None,
        worker: bool = True,
        watching: bool = False,
    ) -> Plan:
        environ = {**FREE, "SERIN_HOME": str(self.home), **(environ or {})}
        settings = Settings.read(environ)
        plan = plan_stack(
            settings, environ, before or StackFile(), worker=worker, watching=watching
        )
        self.made.append(plan)
        return plan

    def close(self) -> None:
        for plan in self.made:
            for held in plan.listeners.values():
                held.close()


def myself() -> Identity:
    found = identify(os.getpid())
    assert found is not None
    return found


def test_everything_runs_on_ports_of_its_own(plans: Planner) -> None:
    plan = plans.plan()
    assert [*plan.children] == EVERY_PART
    ports = [child.port for child in plan.children.values() if child.port]
    assert len({*ports}) == 4
    assert {*plan.listeners} == {"gateway", "mlflow", "prefect"}
    assert plan.addresses["prefect_url"].endswith("/api")
    assert plan.addresses["gateway_url"] in plan.children["control"].argv


def test_the_worker_waits_to_be_asked_for(plans: Planner) -> None:
    plan = plans.plan(worker=False)
    assert "worker" not in plan.children
    assert "worker" in plan.optional


@pytest.mark.skipif(shutil.which("prometheus") is None, reason="needs prometheus")
def test_prometheus_waits_to_be_asked_for(plans: Planner) -> None:
    assert {*WATCHING_PARTS} <= {*plans.plan().optional}
    plan = plans.plan(watching=True)
    assert [*plan.children][-2:] == ["exporter", "prometheus"]
    assert plan.addresses["prometheus_url"].endswith(str(plan.children["prometheus"].port))


def test_somebody_elses_prometheus_finds_an_exporter(plans: Planner) -> None:
    plan = plans.plan({"SERIN_PROMETHEUS_URL": "http://prometheus.example:9090"}, watching=True)
    assert "exporter" in plan.children
    assert "prometheus" not in plan.children


def test_a_server_given_by_address_is_not_run(plans: Planner) -> None:
    plan = plans.plan({"SERIN_MLFLOW_URL": "http://mlflow.example:5000"})
    assert "mlflow" not in plan.children
    assert "mlflow_url" not in plan.addresses
    keeper = plan.children["keeper"]
    assert keeper.environment["MLFLOW_TRACKING_URI"] == "http://mlflow.example:5000"


def test_a_cluster_brings_its_own_gateway(plans: Planner) -> None:
    plan = plans.plan({"SERIN_KUBE_URL": "http://cluster.example"})
    assert not {"control", "gateway"} & {*plan.children}


def test_default_ports_in_use_give_way(plans: Planner) -> None:
    with bind(0) as held:
        taken = held.getsockname()[1]
        settings = Settings(home=plans.home, port_gateway=taken)
        plan = plan_stack(settings, {}, StackFile(), worker=False)
        plans.made.append(plan)
    assert plan.children["gateway"].port != taken


def test_a_set_port_in_use_is_refused(plans: Planner) -> None:
    with bind(0) as held:
        taken = str(held.getsockname()[1])
        with pytest.raises(ConfigurationError, match="SERIN_PORT_PREFECT"):
            plans.plan({"SERIN_PORT_PREFECT": taken})


@pytest.mark.parametrize("ports", ["", "0"], ids=["default", "any"])
def test_a_living_part_keeps_its_port_and_dead_ones_their_address(
    plans: Planner, ports: str
) -> None:
    first = plans.plan()
    before = StackFile(
        processes={
            name: ChildRecord(child.argv, "", myself() if name == "gateway" else None, child.port)
            for name, child in first.children.items()
        }
    )
    for held in first.listeners.values():
        held.close()
    second = plans.plan(dict.fromkeys(FREE, ports), before)
    known = {ADDRESS_OF[name] for name in PORT_PARTS}
    assert {name: second.addresses[name] for name in known} == {
        name: first.addresses[name] for name in known
    }
    assert {*second.listeners} == {"mlflow", "prefect"}
    assert second.children["control"].argv == first.children["control"].argv


def test_a_living_part_on_another_port_than_the_set_one_is_a_contradiction(
    plans: Planner, free_port: int
) -> None:
    record = ChildRecord((), "", myself(), free_port + 1)
    with pytest.raises(ConfigurationError, match="serin down"):
        plans.plan({"SERIN_PORT_GATEWAY": str(free_port)}, StackFile(processes={"gateway": record}))


def test_no_part_reports_home(plans: Planner) -> None:
    for child in plans.plan().children.values():
        assert child.environment["DO_NOT_TRACK"] == "true"
        assert child.environment["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"
        assert child.environment["MLFLOW_DISABLE_TELEMETRY"] == "true"
