"""`serin history` against a real ledger: what served when, a release's account, the check."""

import json
import sqlite3
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import typer

from cli.history import history, read_moment
from core.contracts import CanaryDecision, Candidate, ReleaseState
from core.errors import InputError, NotFoundError
from core.settings import Settings
from rollout.conductor import Conductor
from rollout.fake_inference_service import FakeInferenceServices
from rollout.ledger import Ledger
from rollout.plan import ReleasePlan
from rollout.release import Release
from rollout.times import to_iso, to_seconds

PROMOTE = CanaryDecision("promote", "better in everything", 1000, {"error e-value": 0.1})
ROLL_BACK = CanaryDecision("rollback", "p95 is 2.0 times stable's", 1000)
STEPS_MAX = 60


@pytest.fixture
def conductor(ledger: Ledger) -> Conductor:
    return Conductor(ledger, FakeInferenceServices(), "flow", sleep=lambda _: None)


def release(
    conductor: Conductor,
    version: str,
    stable: str | None,
    decision: CanaryDecision = PROMOTE,
    approval: str = "auto",
) -> Release:
    digest = version * 64
    candidate = Candidate(
        service="assistant",
        model_version=version,
        bundle_digest=digest,
        bundle_uri=f"file:///bundles/{digest}",
        adapter_digest="a" * 64,
        snapshot_id="5" * 64,
        verdict_digest="d" * 64,
        stable_version=stable,
    )
    given = {"shares": (5, 50, 100), "step_seconds_min": 0, "step_requests_min": 0}
    plan = ReleasePlan.model_validate({**given, "approval": approval})
    found = conductor.start(conductor.propose(candidate, plan).release_id)
    if found.state is ReleaseState.AWAITING_APPROVAL:
        conductor.approve(found.release_id, "Ada", "looks right")
    for _ in range(STEPS_MAX):
        if found.final:
            break
        found = conductor.advance(found.release_id, decision)
    return found


@pytest.fixture
def story(conductor: Conductor) -> tuple[Release, Release, Release]:
    """Version 1 made stable, 2 approved and made stable, 3 rolled back."""
    return (
        release(conductor, "1", None),
        release(conductor, "2", "1", approval="required"),
        release(conductor, "3", "2", ROLL_BACK),
    )


def asked(capsys: pytest.CaptureFixture[str], **options: Any) -> Any:
    history(**{"json_output": True, **DEFAULTS, **options})
    return json.loads(capsys.readouterr().out)


DEFAULTS: dict[str, Any] = {"at": None, "release": None, "limit": None, "verify": False}


def test_every_event_is_listed_as_json(
    story: tuple[Release, ...], ledger: Ledger, capsys: pytest.CaptureFixture[str]
) -> None:
    events = asked(capsys, limit=1000)
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert events[-1]["hash"] == ledger.last_events(1)[0].hash
    (last,) = asked(capsys, limit=1, verify=True)
    assert last == events[-1]


def test_what_served_is_told_for_every_moment_between_two_changes(
    story: tuple[Release, ...], ledger: Ledger, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = [event for event in ledger.events() if event.serving]
    assert len(changes) > 6
    for event in changes:
        seen = asked(capsys, at=event.time)
        wanted = {share.model_version: share.percent for share in event.serving if share.percent}
        told = {share["model_version"]: share["percent"] for share in seen["serving"]}
        assert told == wanted
        assert (seen["release_id"], seen["seq"]) == (event.release_id, event.seq)
        assert (seen["event"], seen["since"], seen["hash"]) == (event.kind, event.time, event.hash)
        before = to_iso(to_seconds(event.time) - 0.000_001)
        earlier = asked(capsys, at=before)
        assert earlier["seq"] is None or earlier["seq"] < event.seq
    shares = {tuple(share["percent"] for share in asked(capsys, at=e.time)["serving"])
              for e in changes}  # fmt: skip
    assert {(100,), (95, 5), (50, 50)} <= shares
    assert asked(capsys, at="now")["serving"][0]["bundle_digest"] == "2" * 64


def test_nothing_served_before_the_first_release(
    story: tuple[Release, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    seen = asked(capsys, at="2001-01-01")
    assert (seen["serving"], seen["release_id"]) == ([], None)
    history(json_output=False, **{**DEFAULTS, "at": "2001-01-01T00:00:00+09:00"})
    assert "2000-12-31T15:00:00" in capsys.readouterr().out


def test_a_time_may_be_written_with_or_without_a_zone() -> None:
    moment = datetime(2026, 11, 22, 16, 10, 0, 250_000, tzinfo=UTC)
    later = moment.timestamp() + 5
    east = moment.astimezone(timezone(timedelta(hours=5, minutes=30)))
    texts = ("2026-11-22T16:10:00.25Z", "2026-11-22 16:10:00.250", east.isoformat())
    assert {read_moment(text, later) for text in texts} == {moment.timestamp()}
    assert read_moment(" Now ", 12.5) == 12.5


@pytest.mark.parametrize(
    "text", ["yesterday", "", "16:10", "2026-13-01", "0001-01-01T00:00:00+14:00", "1763829000"]
)
def test_what_is_no_time_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(InputError, match="ISO 8601 such as"):
        read_moment(text, 2e9)


def test_the_future_is_not_told(settings: Settings) -> None:
    with pytest.raises(InputError, match="has not come yet"):
        history(**{**DEFAULTS, "json_output": True, "at": "2999-01-01"})


def test_a_clock_set_back_does_not_hide_what_was_written_last(tmp_path: Path) -> None:
    seconds = [1_000_000.0]
    ledger = Ledger(f"sqlite:///{tmp_path}/jump.db", lambda: seconds[0])
    conductor = Conductor(ledger, FakeInferenceServices(), "flow", sleep=lambda _: None)
    release(conductor, "1", None)
    seconds[0] += 7200  # a wrong clock, put right after the second release
    release(conductor, "2", "1")
    seconds[0] -= 7000
    release(conductor, "3", "2")
    for later in (300, 8000):
        (share,) = ledger.serving_at("assistant", 1_000_000 + later)
        assert share.model_version == "3"
    ledger.close()


def test_an_account_tells_who_why_and_with_what_evidence(
    story: tuple[Release, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    approved = asked(capsys, release=story[1].release_id)
    assert approved["candidate"]["verdict_digest"] == "d" * 64
    answers = {told["event"]: told["body"] for told in approved["answers"]}
    assert answers["approved"]["who"] == "Ada"
    assert answers["approved"]["verdict_digest"] == "d" * 64
    steps = approved["steps"]
    assert [step["percent"] for step in steps] == [5, 50, 100]
    assert all(step["live_at"] for step in steps)
    assert steps[2]["decision"]["reason"] == "better in everything"
    assert {event["release_id"] for event in approved["events"]} == {story[1].release_id}
    history(json_output=False, **{**DEFAULTS, "release": story[1].release_id})
    shown = capsys.readouterr().out
    for words in ("who Ada", "note looks right", "better in everything", "error e-value 0.1"):
        assert words in shown
    assert "d" * 64 in shown


def test_an_account_tells_a_rollbacks_reason_and_how_long_it_took(
    story: tuple[Release, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    ended = asked(capsys, release=story[2].release_id, limit=3)
    assert (ended["state"], ended["as_before"]) == ("ROLLED_BACK", True)
    assert 0 <= ended["seconds_safe"] <= ended["seconds_restored"] < 60
    assert ended["goal_digest"] == ended["after_digest"]
    assert "p95 is 2.0" in ended["turns"][0]["body"]["reason"]
    assert len(ended["events"]) == 3
    history(json_output=False, **{**DEFAULTS, "release": story[2].release_id})
    shown = capsys.readouterr().out
    assert "p95 is 2.0 times stable's" in shown
    assert "restored   after" in shown
    assert "is as it has to be" in shown


def test_an_unknown_release_is_an_error(story: tuple[Release, ...]) -> None:
    with pytest.raises(NotFoundError, match="r-none"):
        history(**{**DEFAULTS, "json_output": True, "release": "r-none"})


def test_one_question_at_a_time(settings: Settings) -> None:
    with pytest.raises(InputError, match="one at a time"):
        history(**{**DEFAULTS, "json_output": True, "release": "r-1", "at": "now"})


def test_nothing_is_made_by_looking(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    assert asked(capsys) == []
    assert asked(capsys, at="now")["serving"] == []
    with pytest.raises(NotFoundError):
        asked(capsys, release="r-1")
    assert not any(settings.home.iterdir())


EDITS = [
    ("UPDATE events SET body = replace(body, 'Ada', 'Eve') WHERE kind = 'approved'", "was edited"),
    ("DELETE FROM events WHERE kind = 'approved'", "are missing"),
    ("UPDATE events SET seq = CASE seq WHEN 3 THEN -4 WHEN 4 THEN 3 ELSE seq END", "event 3"),
    ("DELETE FROM events WHERE seq = (SELECT max(seq) FROM events)", "the chain ends at event"),
]


@pytest.mark.parametrize(("edit", "problem"), EDITS)
def test_verify_finds_an_edit_and_exits_1(
    story: tuple[Release, ...],
    settings: Settings,
    capsys: pytest.CaptureFixture[str],
    edit: str,
    problem: str,
) -> None:
    with sqlite3.connect(settings.home / "ledger.db") as table:
        table.execute(edit)
        table.execute("UPDATE events SET seq = 4 WHERE seq = -4")
    with pytest.raises(typer.Exit) as ended:
        history(**{**DEFAULTS, "json_output": True, "verify": True})
    assert ended.value.exit_code == 1
    assert problem in capsys.readouterr().err


def test_a_tail_cut_together_with_its_head_is_found_by_the_release(
    story: tuple[Release, ...], settings: Settings, ledger: Ledger
) -> None:
    with sqlite3.connect(settings.home / "ledger.db") as table:
        last = "(SELECT max(seq) FROM events)"
        table.execute(f"DELETE FROM events WHERE seq = {last}")
        table.execute(
            "UPDATE meta SET value = (SELECT seq || ':' || hash FROM events "
            f"WHERE seq = {last}) WHERE name = 'head'"
        )
    (problem,) = ledger.verify()
    assert problem == (
        f"release {story[2].release_id} is ROLLED_BACK but its last event says ROLLING_BACK"
    )
