"""Real processes: started, restarted, hung, failed, drained."""

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import httpx
import psutil
import pytest

from serving.local.processes import start_ticks

if TYPE_CHECKING:
    from tests.serving.local.local_plane import ControlPlane, Planes, WaitFor


def asked(plane: "ControlPlane", arm: str = "stable") -> dict[str, object]:
    """Return what a stand-in predictor says of its own start."""
    url = plane.arms()[arm]["endpoints"][0]["url"]
    found: dict[str, object] = httpx.get(url + "/standin").json()
    return found


def test_a_predictor_is_started_as_the_contract_says(planes: "Planes") -> None:
    plane = planes(threads=2)
    plane.start(SERIN_ALLOW_FAULTS="1", SERIN_HOME="elsewhere")
    digest = "ab" * 32
    uri = plane.bundle(digest)
    service = plane.service(uri, "3")
    service["spec"]["predictor"]["model"]["args"] = ["--engine", "reference"]
    plane.create(uri, "3")
    plane.predictor(model=service["spec"]["predictor"]["model"])
    plane.wait_traffic(("00002", 100, "latest"))
    said = asked(plane)
    arguments, environment = said["arguments"], said["environment"]
    assert isinstance(arguments, list)
    assert isinstance(environment, dict)
    port_file = arguments[arguments.index("--port-file") + 1]
    assert port_file.startswith(str(plane.home / "control" / "ports"))
    assert [part for part in arguments if part != port_file] == [
        *("--engine", "reference", "--bundle", uri.removeprefix("file://")),
        *("--model-name", "assistant", "--model-version", "3", "--revision", "assistant-00002"),
        *("--http-port", "0", "--port-file", "--expected-digest", digest, "--threads", "2"),
    ]
    assert environment["SERIN_HOME"] == str(plane.home)
    assert environment["SERIN_ALLOW_FAULTS"] == "1"
    assert environment["SERIN_MODEL_VERSION"] == "3"
    assert plane.arms()["stable"]["bundle_digest"] == digest
    assert "loading" in (plane.home / "logs" / "assistant-00002.log").read_text()
    pid = plane.processes()["00002"]
    assert os.getsid(pid) == pid


def test_a_dead_predictor_leaves_the_routes_at_once_and_comes_back(
    planes: "Planes", wait_for: "WaitFor"
) -> None:
    plane = planes(restart_first_seconds=0.5, restart_reset_seconds=100)
    plane.start()
    plane.create(plane.bundle("a"))
    plane.wait_ready()
    pid = plane.processes()["00001"]
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: plane.arms()["stable"]["endpoints"] == [], "the endpoint's end", seconds=0.4)
    wait_for(lambda: plane.condition() == ("False", "RevisionFailed"), "the crash in the status")
    info = plane.get()["status"]["modelStatus"]["lastFailureInfo"]
    assert info["exitCode"] == 128 + signal.SIGKILL
    plane.wait_ready()
    assert plane.processes()["00001"] != pid
    assert plane.traffic() == [("00001", 100, "latest")]


def test_a_hung_predictor_loses_its_routes_and_is_killed(
    plane: "ControlPlane", wait_for: "WaitFor"
) -> None:
    plane.create(plane.bundle("a"))
    plane.wait_ready()
    pid = plane.processes()["00001"]
    os.kill(pid, signal.SIGSTOP)
    wait_for(lambda: not plane.arms()["stable"]["endpoints"][0]["ready"], "not ready in the routes")
    assert plane.processes()["00001"] == pid
    wait_for(lambda: plane.processes().get("00001", pid) != pid, "another process")
    plane.wait_ready()


def test_a_predictor_that_says_so_is_not_ready_at_once(
    plane: "ControlPlane", wait_for: "WaitFor"
) -> None:
    plane.create(plane.bundle("a"))
    plane.wait_ready()
    plane.behave("assistant-00001", ready=False)
    wait_for(lambda: not plane.arms()["stable"]["endpoints"][0]["ready"], "not ready", seconds=0.8)
    plane.behave("assistant-00001", ready=True)
    plane.wait_ready()
    assert plane.arms()["stable"]["endpoints"][0]["ready"]


def test_a_revision_that_exits_fails_after_three_tries(
    plane: "ControlPlane", wait_for: "WaitFor"
) -> None:
    plane.create(plane.bundle("a"))
    plane.wait_ready()
    plane.predictor(canaryTrafficPercent=5, **plane.model("bad", "2", exit_code=7))
    wait_for(lambda: plane.condition() == ("False", "RevisionFailed"), "the failure")
    status = plane.get()["status"]
    info = status["modelStatus"]["lastFailureInfo"]
    assert status["modelStatus"]["transitionStatus"] == "BlockedByFailedLoad"
    assert (info["modelRevisionName"], info["exitCode"]) == ("assistant-00002", 7)
    assert "ended 3 times" in info["message"]
    assert "the weights are not readable" in info["message"]
    assert plane.traffic() == [("00001", 5, "latest"), ("00001", 95, "prev")]
    assert (plane.home / "logs" / "assistant-00002.log").read_text().count("loading") == 3


def test_a_revision_that_is_never_ready_fails_and_its_process_ends(
    planes: "Planes", wait_for: "WaitFor"
) -> None:
    plane = planes(progress_deadline_seconds=0.5)
    plane.start()
    plane.create(plane.bundle("a", load_seconds=1000))
    wait_for(lambda: plane.condition() == ("False", "RevisionFailed"), "the failure")
    wait_for(lambda: not plane.processes(), "the process's end")


def test_another_digest_than_the_address_names_fails_the_revision(
    plane: "ControlPlane", wait_for: "WaitFor"
) -> None:
    plane.create(plane.bundle("ab" * 32, digest="cd" * 32))
    wait_for(lambda: plane.condition() == ("False", "RevisionFailed"), "the failure")
    assert "reports bundle cdcdcdcdcdcd, expected abababababab" in str(plane.get()["status"])
    wait_for(lambda: not plane.processes(), "the process's end")


def test_a_program_that_is_missing_fails_the_revision(
    planes: "Planes", wait_for: "WaitFor"
) -> None:
    plane = planes()
    plane.command = ["/no/such/program"]
    plane.start()
    plane.create(plane.bundle("a"))
    wait_for(lambda: plane.condition() == ("False", "RevisionFailed"), "the failure")
    assert "No such file" in str(plane.get()["status"])


def test_replicas_are_processes(plane: "ControlPlane", wait_for: "WaitFor") -> None:
    plane.create(plane.bundle("a"), minReplicas=2)
    plane.wait_ready()
    assert sorted(plane.processes()) == ["00001", "00001.1"]
    assert len(plane.arms()["stable"]["endpoints"]) == 2
    os.kill(plane.processes()["00001.1"], signal.SIGKILL)
    wait_for(lambda: len(plane.arms()["stable"]["endpoints"]) == 1, "one endpoint")
    wait_for(lambda: len(plane.arms()["stable"]["endpoints"]) == 2, "two endpoints")


def test_a_deleted_service_stops_and_its_name_can_be_used_again(
    plane: "ControlPlane", wait_for: "WaitFor"
) -> None:
    plane.create(plane.bundle("a", ignore_sigterm=True))
    plane.wait_ready()
    first = plane.processes()["00001"]
    assert httpx.delete(plane.service_url).status_code == 200
    plane.create(plane.bundle("b"))
    plane.wait_ready()
    # The old one still drains while the new one serves: they are not taken for each other.
    second = plane.processes()["00001"]
    assert psutil.pid_exists(first)
    assert first != second
    assert plane.routes()["services"]["assistant"]["arms"][0]["endpoints"][0]["ready"]


def test_a_predictor_that_ignores_sigterm_is_killed(planes: "Planes", wait_for: "WaitFor") -> None:
    plane = planes(stop_grace_seconds=0.3)
    plane.start()
    plane.create(plane.bundle("a", ignore_sigterm=True))
    plane.wait_ready()
    httpx.delete(plane.service_url)
    wait_for(lambda: not plane.processes(), "the end")
    assert "kill assistant-00001" in plane.log()


def test_a_large_log_is_put_aside_at_the_next_start(planes: "Planes", wait_for: "WaitFor") -> None:
    plane = planes(log_bytes_max=1024)
    plane.start()
    logs = plane.home / "logs"
    (logs / "assistant-00001.log").write_text("x" * 2000)
    plane.create(plane.bundle("a"))
    plane.wait_ready()
    assert (logs / "assistant-00001.log.1").read_text() == "x" * 2000
    assert "loading" in (logs / "assistant-00001.log").read_text()


def test_a_zombie_is_not_alive() -> None:
    child = subprocess.Popen([sys.executable, "-S", "-c", ""])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert start_ticks(child.pid) is None
    child.wait()
    assert start_ticks(os.getpid())
    assert start_ticks(2**22 + 1) is None


def test_an_idle_control_plane_costs_next_to_nothing(planes: "Planes") -> None:
    plane = planes()
    plane.config = {}
    plane.start()
    plane.create(plane.bundle("a"), minReplicas=2)
    plane.wait_ready()
    assert plane.process is not None
    process = psutil.Process(plane.process.pid)
    before = sum(process.cpu_times()[:2])
    with pytest.raises(subprocess.TimeoutExpired):
        plane.process.wait(4)
    spent = sum(process.cpu_times()[:2]) - before
    # 1 % of a core is the aim; twice that is the alarm, as clock ticks are 10 ms.
    assert spent <= 0.08, f"{spent:.2f} CPU-seconds in 4 seconds"
    assert process.memory_info().rss < 120e6
