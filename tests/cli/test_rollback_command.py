"""`serin rollback --to`: refusals before anything is written, and who carries the canary out."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.release import require_bundle, rollback
from core.contracts import CanaryDecision, Candidate, ReleaseState
from core.errors import NotFoundError, RefusedError
from core.settings import Settings
from rollout.conductor import Conductor
from rollout.fake_inference_service import FakeInferenceServices
from rollout.kubernetes_client import KubernetesClient
from rollout.ledger import Ledger
from rollout.plan import ReleasePlan
from tests.rollout.control_plane import ControlPlane

PROMOTE = CanaryDecision("promote", "better", 1000)
STEPS_MAX = 60


@pytest.fixture
def services() -> FakeInferenceServices:
    return FakeInferenceServices()


@pytest.fixture
def settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, services: FakeInferenceServices
) -> Iterator[Settings]:
    plane = ControlPlane(services)
    monkeypatch.setenv("SERIN_HOME", str(tmp_path))
    (tmp_path / "stack.json").write_text(json.dumps({"addresses": {"kube_url": plane.url}}))
    yield Settings.read()
    plane.stop()


@pytest.fixture
def ledger(settings: Settings) -> Iterator[Ledger]:
    """Version 1, 2 and 3 were made stable, in that order."""
    opened = Ledger(settings.ledger_url)
    conductor = Conductor(opened, KubernetesClient(settings.kube_url), "flow")
    plan = ReleasePlan(shares=(50, 100), step_seconds_min=0, step_requests_min=0)
    for version in "123":
        release = conductor.start(conductor.propose(candidate(settings, version), plan).release_id)
        for _ in range(STEPS_MAX):
            release = release if release.final else conductor.advance(release.release_id, PROMOTE)
        assert release.state is ReleaseState.PROMOTED
    yield opened
    opened.close()


def candidate(settings: Settings, version: str) -> Candidate:
    digest = version * 64
    folder = settings.folder("bundles") / digest
    folder.mkdir()
    return Candidate(
        service="assistant",
        model_version=version,
        bundle_digest=digest,
        bundle_uri=f"file://{folder}",
        adapter_digest="a" * 64,
        snapshot_id="5" * 64,
        verdict_digest="d" * 64,
        stable_version=str(int(version) - 1) if version > "1" else None,
    )


def test_without_now_an_earlier_version_waits_for_its_canary(
    ledger: Ledger, services: FakeInferenceServices, capsys: pytest.CaptureFixture[str]
) -> None:
    rollback(reason="1 was better", to="1", now=False, name="Ada")
    shown = capsys.readouterr().out
    assert "(version 1) PROPOSED" in shown
    assert "the watch starts its canary" in shown  # no Prefect runs here
    (waiting,) = ledger.waiting("assistant")
    assert (waiting.candidate.model_version, waiting.requested_by) == ("1", "Ada")
    assert services.weights("default", "assistant") == {"3" * 64: 100}


def test_with_now_an_earlier_version_gets_all_traffic_at_once(
    ledger: Ledger, services: FakeInferenceServices
) -> None:
    rollback(reason="now", to="1", now=True, name="Ada")
    assert services.weights("default", "assistant") == {"1" * 64: 100}
    assert ledger.releases("assistant")[0].kind == "rollback"


def test_with_now_a_running_canary_is_not_in_the_way(
    ledger: Ledger, settings: Settings, services: FakeInferenceServices
) -> None:
    conductor = Conductor(ledger, KubernetesClient(settings.kube_url), "flow")
    begun = conductor.propose(
        candidate(settings, "4"), ReleasePlan(shares=(50, 100), step_seconds_min=0)
    )
    conductor.start(begun.release_id)
    rollback(reason="both are bad", to="2", now=True, name="Ada")
    assert ledger.release(begun.release_id).state is ReleaseState.ROLLED_BACK
    assert services.weights("default", "assistant") == {"2" * 64: 100}


@pytest.mark.parametrize("now", [False, True])
@pytest.mark.parametrize(
    ("to", "words"), [("9", "never was stable"), ("3", "version 3 serves already")]
)
def test_what_cannot_be_returned_to_is_refused(
    ledger: Ledger, to: str, words: str, now: bool
) -> None:
    events = ledger.events()
    with pytest.raises(RefusedError, match=words):
        rollback(reason="x", to=to, now=now, name="Ada")
    assert ledger.events() == events


@pytest.mark.parametrize("now", [False, True])
def test_a_bundle_that_is_gone_is_named(ledger: Ledger, settings: Settings, now: bool) -> None:
    (settings.home / "bundles" / ("1" * 64)).rmdir()
    events = ledger.events()
    with pytest.raises(NotFoundError, match="bundle of version 1 is gone"):
        rollback(reason="x", to="1", now=now, name="Ada")
    assert ledger.events() == events


def test_a_bundle_elsewhere_is_the_clusters_affair(ledger: Ledger) -> None:
    from dataclasses import replace

    found = ledger.releases("assistant")[0].candidate
    require_bundle(replace(found, bundle_uri="s3://bundles/" + "1" * 64))
