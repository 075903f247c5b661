"""Decisions on kept scrapes are recorded with their inputs, and derived again from them."""

import dataclasses
import sqlite3
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cli.evidence import evidence_view
from cli.verification import decision_problems
from core.contracts import ArmOutcomes, CanaryDecision, Candidate, CounterSample, Stratum
from rollout.conductor import Conductor
from rollout.fake_inference_service import FakeInferenceServices
from rollout.ledger import Ledger
from rollout.plan import ReleasePlan
from rollout.release import Release
from tasks.looking import judge_kept, look
from tasks.plotting import draw_release
from validation.canary import CanaryConfig

CONFIG = CanaryConfig(requests_min=1, seconds_min=1)
SCRAPES = 6


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    opened = Ledger(f"sqlite:///{tmp_path}/ledger.db")
    yield opened
    opened.close()


@pytest.fixture
def conductor(ledger: Ledger) -> Conductor:
    return Conductor(ledger, FakeInferenceServices(), "flow", sleep=lambda _: None)


def sample(number: int) -> CounterSample:
    """The canary fails half its requests, stable none."""
    requests = 20 * number
    stable = ArmOutcomes(requests, latencies={20: requests} if requests else {})
    canary = ArmOutcomes(requests, errors=requests // 2, latencies={20: requests} if number else {})
    return CounterSample(1e9 + 5 * number, 0.5, None, None, "one", (Stratum(0.5, stable, canary),))


def canary(conductor: Conductor, shares: tuple[int, ...] = (5, 50, 100)) -> Release:
    """Version 1 is stable, version 2 a canary that waits for a decision."""
    for version, stable in (("1", None), ("2", "1")):
        digest = version * 64
        candidate = Candidate(
            "assistant", version, digest, f"file:///bundles/{digest}", "a", "s", "v", stable
        )
        plan = ReleasePlan(shares=shares, step_seconds_min=0, step_requests_min=0)
        release = conductor.start(conductor.propose(candidate, plan).release_id)
        for _ in range(20):
            if release.final or release.step_started_at:
                break
            release = conductor.advance(release.release_id)
    return release


@pytest.fixture
def decided(ledger: Ledger, conductor: Conductor) -> Release:
    """A release that the judge took back."""
    release = canary(conductor)
    decision = CanaryDecision("continue", "")
    for number in range(SCRAPES):
        ledger.add_sample(release.release_id, sample(number))
        decision = judge_kept(ledger, release.release_id, CONFIG)
        if decision.decision == "rollback":
            break
    assert decision.decision == "rollback"
    ledger.keep_decision(release, decision, 1e9)
    return conductor.roll_back(release.release_id, decision.reason, "watch", decision=decision)


def edit(folder: Path, statement: str) -> None:
    connection = sqlite3.connect(folder / "ledger.db")
    connection.execute(statement)
    connection.commit()
    connection.close()


def test_a_recorded_decision_follows_from_the_kept_scrapes(
    ledger: Ledger, decided: Release
) -> None:
    (event,) = ledger.decided_events()
    assert event.release_id == decided.release_id
    assert event.body["decision"]["inputs"]["samples"] >= 2
    assert list(decision_problems(ledger)) == []
    assert ledger.verify() == []


@pytest.mark.parametrize(
    ("statement", "problem"),
    [
        ("UPDATE samples SET body = replace(body, '\"errors\":10', '\"errors\":11')", "changed"),
        ("DELETE FROM samples WHERE sample_id = 1", "missing"),
        ("UPDATE events SET body = replace(body, '\"bake\"', '\"brew\"')", "cannot read"),
        (
            """UPDATE events SET body = replace(body, '"decision":"rollback"',
            '"decision":"promote"')""",
            "recorded is promote",
        ),
    ],
)
def test_an_edited_scrape_or_decision_is_found(
    ledger: Ledger, decided: Release, tmp_path: Path, statement: str, problem: str
) -> None:
    edit(tmp_path, statement)
    (found,) = decision_problems(ledger)
    assert problem in found


def test_a_process_that_asks_again_says_what_a_new_one_would(
    ledger: Ledger, conductor: Conductor, tmp_path: Path
) -> None:
    release_id = canary(conductor).release_id
    other = Ledger(f"sqlite:///{tmp_path}/ledger.db")
    for number in range(SCRAPES):
        ledger.add_sample(release_id, dataclasses.replace(sample(number), process=f"{number % 2}"))
        assert judge_kept(ledger, release_id, CONFIG).reason
    assert judge_kept(ledger, release_id, CONFIG) == judge_kept(other, release_id, CONFIG)
    other.close()


def test_a_release_is_drawn_and_shown_from_what_was_kept(
    ledger: Ledger, decided: Release, tmp_path: Path
) -> None:
    assert draw_release(ledger, decided, tmp_path / "evidence.png")
    assert (tmp_path / "evidence.png").read_bytes().startswith(b"\x89PNG")
    seen = evidence_view(ledger, decided)
    assert seen is not None
    assert seen.decision == "rollback"
    assert seen.metrics["errors"].roll_back == 1.0
    assert seen.metrics["errors"].promote == 0.0
    assert seen.metrics["errors"].difference == pytest.approx(0.5)
    first = ledger.releases("assistant")[-1]
    assert evidence_view(ledger, first) is None
    assert not draw_release(ledger, first, tmp_path / "nothing.png")


PAIRS = 'service="assistant",canary="c",stable="s"'


@pytest.fixture
def shadowed_page(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A gateway's page: a canary at 0 %, shadowed; it is wrong where stable is right."""
    page = [
        'serin_gateway_process{process="p"} 1',
        'serin_gateway_arm{service="assistant",arm="stable",revision="s"} 1',
        'serin_gateway_arm{service="assistant",arm="canary",revision="c"} 1',
        f'serin_gateway_shadow_pairs_total{{{PAIRS},canary_score="0",stable_score="100"}} 200',
    ]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(("\n".join(page) + "\n").encode())

        def log_message(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    monkeypatch.setenv("SERIN_GATEWAY_URL", f"http://127.0.0.1:{server.server_address[1]}")
    yield page
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_canary_without_clients_is_judged_by_its_shadow_pairs(
    ledger: Ledger, conductor: Conductor, shadowed_page: list[str]
) -> None:
    config = CanaryConfig(judge_quality=True)
    release = canary(conductor, shares=(0, 50, 100))
    assert (release.share, release.step_started_at is None) == (0, False)
    shadowed_page[-1] = shadowed_page[-1].removesuffix(" 200") + " 3"
    decision = look(ledger, release, config)
    assert decision is not None
    assert decision.decision == "continue"
    shadowed_page[-1] = shadowed_page[-1].removesuffix(" 3") + " 200"
    decision = look(ledger, release, config)
    assert decision is not None
    assert (decision.decision, decision.canary_requests) == ("rollback", 0)
    seen = evidence_view(ledger, release)
    assert seen is not None
    assert (seen.metrics["quality"].pairs, seen.metrics["quality"].roll_back) == (200, 1.0)
    ended = conductor.advance(release.release_id, decision)
    assert ended.reason.startswith("the judge: quality")
    assert list(decision_problems(ledger)) == []
