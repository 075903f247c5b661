"""`serin approver`, `approve`, `reject`: codes come hidden or from the environment, traceless."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from cli.approvals import add, approve, list_names, read_code, reject, remove
from core.contracts import Candidate, ReleaseState
from core.errors import RefusedError
from core.settings import Settings
from rollout.conductor import Conductor
from rollout.fake_inference_service import FakeInferenceServices
from rollout.ledger import Ledger
from rollout.plan import ReleasePlan
from rollout.release import Release

ROOT = Path(__file__).resolve().parents[2]
CODE = "correct horse 77"


@pytest.fixture(autouse=True)
def code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERIN_APPROVAL_CODE", CODE)


@pytest.fixture
def asked(ledger: Ledger) -> Release:
    """A release for which two people must agree."""
    conductor = Conductor(ledger, FakeInferenceServices(), "flow")
    digest = "b" * 64
    candidate = Candidate(
        "assistant", "1", digest, f"file:///bundles/{digest}", "a" * 64, "c" * 64, "d" * 64, None
    )
    plan = ReleasePlan(approval="required", approvals_required=2)
    return conductor.start(conductor.propose(candidate, plan).release_id)


def test_approvers_are_added_listed_and_removed(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    list_names()
    assert "no approvers" in capsys.readouterr().out
    add("Ada")
    list_names()
    shown = capsys.readouterr().out
    assert shown.endswith("Ada\n")
    assert CODE not in shown
    remove("Ada")
    list_names()
    assert "no approvers" in capsys.readouterr().out


def test_an_approval_counts_the_approvals_and_a_wrong_code_counts_nothing(
    settings: Settings,
    asked: Release,
    ledger: Ledger,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    add("Ada")
    approve(asked.release_id, "Ada", "read it")
    shown = capsys.readouterr().out
    assert "AWAITING_APPROVAL, 1 of 2 approvals" in shown
    assert CODE not in shown
    monkeypatch.setenv("SERIN_APPROVAL_CODE", "guess-guess")
    with pytest.raises(RefusedError, match="name or code is wrong"):
        reject(asked.release_id, "Ada", "")
    (given,) = ledger.release(asked.release_id).approvals
    assert (given.who, given.note, given.self_declared) == ("Ada", "read it", False)


def test_a_rejection_is_kept_where_no_prefect_is(
    settings: Settings, asked: Release, ledger: Ledger, capsys: pytest.CaptureFixture[str]
) -> None:
    add("Ada")
    reject(asked.release_id, "Ada", "not today")
    assert "no Prefect server is known" in capsys.readouterr().out
    assert ledger.release(asked.release_id).state is ReleaseState.REJECTED


def test_a_code_is_never_asked_for_where_it_would_be_seen(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SERIN_APPROVAL_CODE")
    with pytest.raises(RefusedError, match="SERIN_APPROVAL_CODE"):
        read_code("code: ")


def test_a_code_typed_in_a_terminal_is_not_shown(settings: Settings) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "SERIN_APPROVAL_CODE"}
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "cli.main", "approver", "add", "Ada"],
        cwd=ROOT, env=environment, stdin=theirs, stdout=theirs, stderr=theirs,
        start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    shown = b""
    for prompt in (b"new code of Ada: ", b"again: "):
        while not shown.endswith(prompt):
            shown += os.read(ours, 1000)
        os.write(ours, f"{CODE}\n".encode())
    assert process.wait(60) == 0
    shown += os.read(ours, 1000)
    os.close(ours)
    assert b"Ada may approve" in shown.replace(b"\r\n", b" ")
    assert CODE.encode() not in shown
