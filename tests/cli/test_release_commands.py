"""`serin approve`, reject and status against a real ledger."""

import pytest

from cli.approvals import approve, reject
from cli.overview import Reader
from cli.release import open_conductor
from cli.status import render
from core.contracts import Candidate, ReleaseState
from core.errors import RefusedError
from core.settings import Settings
from rollout.conductor import Conductor
from rollout.fake_inference_service import FakeInferenceServices
from rollout.ledger import Ledger
from rollout.plan import ReleasePlan
from rollout.release import Release

PROPOSED_BUNDLE = "b" * 64


@pytest.fixture
def asked(ledger: Ledger) -> Release:
    """A first release that awaits a person's approval."""
    conductor = Conductor(ledger, FakeInferenceServices(), "flow")
    candidate = Candidate(
        service="assistant",
        model_version="1",
        bundle_digest=PROPOSED_BUNDLE,
        bundle_uri=f"file:///bundles/{PROPOSED_BUNDLE}",
        adapter_digest="a" * 64,
        snapshot_id="c" * 64,
        verdict_digest="d" * 64,
        stable_version=None,
    )
    proposed = conductor.propose(candidate, ReleasePlan(approval="required"))
    return conductor.start(proposed.release_id)


def test_an_approval_is_in_the_ledger_with_name_and_note(
    asked: Release, ledger: Ledger, capsys: pytest.CaptureFixture[str]
) -> None:
    approve(asked.release_id, "Ada", "looks right")
    assert asked.release_id in capsys.readouterr().out
    (approved,) = ledger.release(asked.release_id).approvals
    assert (approved.who, approved.note) == ("Ada", "looks right")
    assert approved.verdict_digest == "d" * 64


def test_a_rejection_ends_the_release(asked: Release, ledger: Ledger) -> None:
    reject(asked.release_id, "Ada", "not today")
    ended = ledger.release(asked.release_id)
    assert ended.state is ReleaseState.REJECTED
    assert "Ada" in str(ledger.last_events(1)[0].body)


def test_a_decision_needs_a_name(asked: Release, ledger: Ledger) -> None:
    with pytest.raises(RefusedError, match="--as"):
        approve(asked.release_id, " ")
    assert ledger.release(asked.release_id).approvals == ()


def test_there_is_nothing_to_decide_without_a_ledger(settings: Settings) -> None:
    with pytest.raises(RefusedError, match="no releases"):
        open_conductor(settings)


def test_status_says_unknown_where_nobody_answers(
    asked: Release, settings: Settings, free_port: int
) -> None:
    away = f"http://127.0.0.1:{free_port}"
    deaf = settings.model_copy(
        update={"kube_url": away, "gateway_url": away, "prefect_url": f"{away}/api"}
    )
    seen = Reader(deaf).read()
    assert seen.serving is None
    assert seen.runs is None
    assert seen.active is not None
    assert seen.active.state == "AWAITING_APPROVAL"
    assert seen.waiting == ()


def test_status_says_unknown_when_the_ledger_is_broken(settings: Settings) -> None:
    (settings.home / "ledger.db").write_bytes(b"this is no database" * 100)
    seen = Reader(settings).read()
    assert seen.active is None
    assert seen.waiting is None
    assert "ledger" in seen.notes[0]


def test_status_is_shown_to_people(
    asked: Release, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    from rich.console import Console

    Console(width=200).print(render(Reader(settings).read()))
    shown = capsys.readouterr().out
    assert "AWAITING_APPROVAL" in shown
    assert "runs: unknown" in shown
