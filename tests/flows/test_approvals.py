"""Approvals on the real stack: by the command line and in a browser, with codes that are erased."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from approval_desk import CODES, SERVICE, Desk, open_desk

from core.contracts import ReleaseState
from observability.load import LoadConfig, LoadGenerator
from tests.running_stack import ROOT, Stack, serin

pytestmark = pytest.mark.timeout(600)
PAGE_SECONDS_MAX = 60


@pytest.fixture(scope="module")
def desk(stack: Stack, bundle: Path) -> Iterator[Desk]:
    with open_desk(stack, bundle) as opened:
        yield opened


@pytest.fixture(scope="module")
def approvers(desk: Desk) -> Iterator[None]:
    """Ada and Grace may approve; each made their code themselves."""
    for name, code in CODES.items():
        environment = {**desk.environment, "SERIN_APPROVAL_CODE": code}
        said = serin("approver", "add", name, environment=environment, seconds=60)
        assert code not in said
    yield
    desk.settings.approvers_file.unlink()


@pytest.fixture
def traffic(desk: Desk) -> Iterator[LoadGenerator]:
    config = LoadConfig(url=desk.settings.gateway_url, model=SERVICE, rps=20, max_tokens=4)
    load = LoadGenerator(config, ["Where is my parcel?"])
    load.start()
    yield load
    load.stop()


def answer(
    desk: Desk, command: str, release_id: str, name: str, code: str
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "cli.main", command, release_id, "--as", name, "--note", "read it"],
        cwd=ROOT, env={**desk.environment, "SERIN_APPROVAL_CODE": code},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def traces(desk: Desk, code: str) -> list[str]:
    """Every place of the home in which a code is found, in any file, byte by byte."""
    found = []
    for path in sorted(desk.settings.home.rglob("*")):
        small = path.is_file() and not path.is_symlink() and path.stat().st_size < 1 << 28
        bundles = desk.settings.home / "bundles"
        if small and bundles not in path.parents and code.encode() in path.read_bytes():
            found.append(str(path))
    return found


def test_two_approvers_by_command_line_let_the_canary_begin(
    desk: Desk, approvers: None, traffic: LoadGenerator
) -> None:
    proposed = desk.propose(0.8, approval="required", approvals_required=2)
    release_id = proposed.release_id
    ended = desk.run_flow("release", {"release_id": release_id})
    assert ended["name"] == "Awaiting approval"  # nobody's run is blocked where none can wait
    run_id = desk.ask(proposed)

    refused = answer(desk, "approve", release_id, "Ada", "not-the-code-of-ada")
    assert refused.returncode == 1
    assert "name or code is wrong" in refused.stderr
    assert "1 of 2 approvals" in answer(desk, "approve", release_id, "Ada", CODES["Ada"]).stdout
    assert "1 of 2 approvals" in answer(desk, "approve", release_id, "Ada", CODES["Ada"]).stdout
    assert desk.state(release_id) is ReleaseState.AWAITING_APPROVAL
    last = answer(desk, "approve", release_id, "Grace", CODES["Grace"])
    assert "its run goes on" in last.stdout, last.stderr

    desk.wait(lambda: desk.state(release_id) is ReleaseState.PROMOTED, "the promotion")
    kinds = desk.kinds(release_id)
    assert (kinds.count("approved"), kinds.count("answer_refused")) == (2, 1)
    assert kinds.index("answer_refused") < kinds.index("approved") < kinds.index("started")
    approvals = desk.ledger.release(release_id).approvals
    assert [(one.who, one.note, one.self_declared) for one in approvals] == [
        ("Ada", "read it", False),
        ("Grace", "read it", False),
    ]
    desk.wait(lambda: desk.runs(release_id)[0]["state_name"] == "Promoted", "the run's end")
    assert [run["id"] for run in desk.runs(release_id)] == [run_id]
    assert traffic.stop().failed == 0
    assert desk.ledger.verify() == []
    for code in (*CODES.values(), "not-the-code-of-ada"):
        assert traces(desk, code) == []


def test_an_answer_given_while_prefect_is_away_is_kept_and_honoured_later(
    desk: Desk, approvers: None
) -> None:
    proposed = desk.propose(0.8, approval="required", requester_excluded=True)
    release_id = proposed.release_id
    desk.ask(proposed)
    away = {**desk.environment, "SERIN_PREFECT_URL": "http://127.0.0.1:9/api"}
    elsewhere = Desk(desk.settings, away, desk.bundles, desk.conductor, desk.registry)
    said = answer(elsewhere, "reject", release_id, "Grace", CODES["Grace"])
    assert said.returncode == 0, said.stderr
    assert "REJECTED" in said.stdout
    assert "the watch goes on with it" in said.stdout
    desk.run_flow("watch", {})
    desk.wait(lambda: desk.runs(release_id)[0]["state_name"] == "Rejected", "the run's end")


def test_a_plan_that_needs_approvers_does_not_start_without_them(desk: Desk) -> None:
    proposed = desk.propose(0.8, approval="required", approvals_required=2)
    ended = desk.run_flow("release", {"release_id": proposed.release_id})
    assert ended["type"].endswith("FAILED")
    assert "serin approver add" in ended["message"]
    desk.conductor.reject(proposed.release_id, "test")
