"""The control plane itself is killed, paused or stopped: predictors go on and are found again."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import psutil
import pytest

from core.errors import RefusedError
from serving.local.__main__ import main
from serving.local.processes import Folders, ProcessEntry, read_entries, stop_all

if TYPE_CHECKING:
    from tests.serving.local.local_plane import ControlPlane, Planes, WaitFor


def test_a_killed_control_plane_adopts_and_never_restarts(
    own_plane: "ControlPlane", wait_for: "WaitFor"
) -> None:
    plane = own_plane
    plane.create(plane.bundle("a"))
    plane.wait_ready()
    plane.predictor(canaryTrafficPercent=5, **plane.model("b", "2"))
    plane.wait_traffic(("00002", 5, "latest"), ("00001", 95, "prev"))
    before, found, routes = plane.processes(), plane.get(), plane.routes()
    assert plane.stop(signal.SIGKILL) == -signal.SIGKILL
    assert plane.processes() == before
    plane.start()
    plane.predictor(canaryTrafficPercent=15)
    plane.wait_traffic(("00002", 15, "latest"), ("00001", 85, "prev"))
    assert plane.processes() == before
    assert plane.get()["metadata"]["uid"] == found["metadata"]["uid"]
    # Between the two there was no moment in which an endpoint was not ready.
    assert plane.routes()["generation"] == routes["generation"] + 1
    assert plane.condition() == ("True", "")


def test_an_adopted_predictor_is_restarted_when_it_dies(
    own_plane: "ControlPlane", wait_for: "WaitFor"
) -> None:
    plane = own_plane
    plane.create(plane.bundle("a"))
    plane.wait_ready()
    plane.stop(signal.SIGKILL)
    plane.start()
    pid = plane.processes()["00001"]
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: plane.processes().get("00001", pid) != pid, "another process")
    plane.wait_ready()


def test_sigterm_ends_the_control_plane_and_leaves_the_predictors(
    own_plane: "ControlPlane",
) -> None:
    plane = own_plane
    plane.create(plane.bundle("a"))
    plane.wait_ready()
    before = plane.processes()
    with httpx.stream("GET", plane.url + plane.services, params={"watch": "true"}):
        assert plane.stop() == 0
    assert plane.processes() == before
    assert httpx.get(plane.arms()["stable"]["endpoints"][0]["url"] + "/standin").is_success


def test_predictors_that_died_meanwhile_are_started_again(own_plane: "ControlPlane") -> None:
    plane = own_plane
    plane.create(plane.bundle("a"))
    plane.wait_ready()
    plane.stop()
    assert stop_all(plane.home) == 1
    assert plane.processes() == {}
    plane.start()
    plane.wait_ready()
    assert list(plane.processes()) == ["00001"]
    assert plane.component()["latestCreatedRevision"] == "assistant-00001"


def test_a_start_that_was_cut_off_is_found_again(own_plane: "ControlPlane") -> None:
    plane = own_plane
    plane.create(plane.bundle("a"))
    plane.wait_ready()
    before = plane.processes()
    plane.stop(signal.SIGKILL)
    # As after a crash between the start of the process and its record.
    file = plane.home / "control" / "processes.json"
    content = json.loads(file.read_text())
    content["processes"][0].update(pid=0, start_ticks=0, port=0, ready=False, bundle_digest="")
    file.write_text(json.dumps(content))
    plane.start()
    plane.wait_ready()
    assert plane.processes() == before


def test_another_process_with_the_pid_is_not_adopted(own_plane: "ControlPlane") -> None:
    plane = own_plane
    plane.create(plane.bundle("a"))
    plane.wait_ready()
    plane.stop()
    stop_all(plane.home)
    file = plane.home / "control" / "processes.json"
    entry = ProcessEntry(
        "assistant-00001-0-x", "uid", "assistant", "assistant-00001", 0, "p", "l", os.getpid(), 1
    )
    content = json.loads(file.read_text())
    content["processes"] = [{name: getattr(entry, name) for name in ProcessEntry.__slots__}]
    file.write_text(json.dumps(content))
    assert read_entries(Folders(plane.home)) == []
    plane.start()
    plane.wait_ready()
    assert os.getpid() not in plane.processes().values()


def test_orphans_of_a_deleted_service_are_stopped(
    own_plane: "ControlPlane", wait_for: "WaitFor"
) -> None:
    plane = own_plane
    plane.create(plane.bundle("a"))
    plane.wait_ready()
    plane.stop()
    for name in ("services.json", "revisions.json", "routes.json"):
        (plane.home / "control" / name).unlink()
    assert plane.processes()
    plane.start()
    wait_for(lambda: not plane.processes(), "the orphan's end")
    assert plane.routes()["services"] == {}


def test_routes_never_go_back_a_generation(own_plane: "ControlPlane") -> None:
    plane = own_plane
    plane.create(plane.bundle("a"))
    plane.wait_ready()
    before = plane.routes()["generation"]
    plane.stop()
    (plane.home / "control" / "routes.json").unlink()
    plane.start()
    plane.wait_ready()
    assert plane.routes()["generation"] >= before


def test_a_paused_control_plane_blames_nobody(
    own_plane: "ControlPlane", wait_for: "WaitFor"
) -> None:
    plane = own_plane
    plane.create(plane.bundle("a"))
    plane.wait_ready()
    before, generation = plane.processes(), plane.routes()["generation"]
    assert plane.process is not None
    plane.process.send_signal(signal.SIGSTOP)
    wait_for(lambda: psutil.Process(plane.process.pid).status() == "stopped", "the pause")
    try:
        plane.process.wait(plane.config["hung_seconds_max"] + 0.5)
    except subprocess.TimeoutExpired:
        plane.process.send_signal(signal.SIGCONT)
    wait_for(lambda: "was paused" in plane.log(), "the pause in the log")
    plane.predictor(minReplicas=1)
    plane.wait_ready()
    assert plane.processes()["00001"] == before["00001"]
    assert plane.routes()["generation"] == generation or "kill" not in plane.log()


def test_stop_all_stops_what_runs_and_says_how_many(own_plane: "ControlPlane") -> None:
    plane = own_plane
    plane.create(plane.bundle("a", ignore_sigterm=True), minReplicas=2)
    plane.wait_ready()
    with pytest.raises(RefusedError, match="another control plane"):
        stop_all(plane.home)
    plane.stop()
    assert stop_all(plane.home, grace_seconds=0.2) == 2
    assert plane.processes() == {}
    assert stop_all(plane.home) == 0


def test_stop_all_is_an_option_of_the_program(
    own_plane: "ControlPlane", capsys: pytest.CaptureFixture[str]
) -> None:
    plane = own_plane
    plane.create(plane.bundle("a"))
    plane.wait_ready()
    plane.stop()
    assert main(["--home", str(plane.home), "--stop-all"]) == 0
    assert capsys.readouterr().out == "stopped 1 predictors\n"
    assert main(["--home", str(plane.home / "none"), "--stop-all"]) == 0


def test_one_home_has_one_control_plane(plane: "ControlPlane") -> None:
    done = subprocess.run(
        [sys.executable, "-m", "serving.local", "--home", str(plane.home), "--port", "0"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 1
    assert plane.process is not None
    assert f"another control plane (process {plane.process.pid})" in done.stderr


def test_a_taken_port_is_named(planes: "Planes", tmp_path: Path, plane: "ControlPlane") -> None:
    port = plane.url.rpartition(":")[2]
    done = subprocess.run(
        [sys.executable, "-m", "serving.local", "--home", str(tmp_path / "b"), "--port", port],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 1
    assert f"port {port} (--port, SERIN_PORT_CONTROL) cannot be used" in done.stderr


def living(plane: "ControlPlane") -> list[str]:
    """Return the revisions of all processes that name this home, whoever knows of them."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        line = process.info["cmdline"] or []
        if process.info["status"] != "zombie" and "--revision" in line:
            port_file = line[line.index("--port-file") + 1]
            if port_file.startswith(str(plane.home)):
                found.append(line[line.index("--revision") + 1])
    return sorted(found)


def known(plane: "ControlPlane") -> list[str]:
    """Return the revisions of all processes when these are the recorded ones, else nothing."""
    found = living(plane)
    return found if found == sorted(entry["revision"] for entry in plane.entries()) else []


@pytest.mark.slow
def test_kills_at_any_moment_leave_one_process_for_each_revision(
    own_plane: "ControlPlane", wait_for: "WaitFor"
) -> None:
    plane = own_plane
    chance = random.Random(7)
    plane.create(plane.bundle("1"))
    plane.wait_ready()
    assert plane.process is not None
    for number in range(2, 22):
        percent = chance.choice([None, 0, 5, 50])
        patch = {"canaryTrafficPercent": percent, **plane.model(str(number), str(number))}
        plane.predictor(**patch)
        with contextlib.suppress(subprocess.TimeoutExpired):
            plane.process.wait(chance.random() * 0.2)
        plane.stop(signal.SIGKILL)
        plane.start()
        assert plane.process is not None
        revision = f"assistant-{number:05d}"
        wait_for(lambda name=revision: plane.component()["latestReadyRevision"] == name, revision)
        plane.wait_ready()
        found = wait_for(lambda: known(plane), "no process that is not recorded")
        assert len(set(found)) == len(found)
    assert "Traceback" not in plane.log()
