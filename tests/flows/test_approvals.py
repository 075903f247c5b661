"""Approvals on the real stack: by the command line and in a browser, with codes that are erased."""

import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
from approval_desk import CODES, SERVICE, Desk, open_desk

from core.contracts import ReleaseState
from observability.load import LoadConfig, LoadGenerator
from tests.running_stack import ROOT, Stack, serin

if TYPE_CHECKING:
    from approval_page import Page
    from selenium import webdriver

pytestmark = pytest.mark.timeout(600)
PROGRAMS = ("chromium", "chromedriver")
needs_browser = pytest.mark.skipif(
    any(shutil.which(name) is None for name in PROGRAMS),
    reason="needs chromium and chromedriver: `make programs`",
)


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


@pytest.fixture(scope="module")
def browser() -> Iterator["webdriver.Chrome"]:
    from approval_page import open_browser

    with open_browser() as opened:
        yield opened


@pytest.fixture
def traffic(desk: Desk) -> Iterator[LoadGenerator]:
    config = LoadConfig(url=desk.settings.gateway_url, model=SERVICE, rps=20, max_tokens=4)
    load = LoadGenerator(config, ["Where is my parcel?"])
    load.start()
    yield load
    load.stop()


def answer(
    desk: Desk,
    command: str,
    release_id: str,
    name: str,
    code: str,
    environment: dict[str, str] | None = None,
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "cli.main", command, release_id, "--as", name, "--note", "read it"],
        cwd=ROOT, env={**(environment or desk.environment), "SERIN_APPROVAL_CODE": code},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def content(path: Path) -> bytes:
    """A file's bytes; of a database whose deletions are not overwritten, what it still says."""
    if path.suffix == ".db":
        with closing(sqlite3.connect(path)) as database:
            if database.execute("PRAGMA secure_delete").fetchone() == (0,):
                return "\n".join(database.iterdump()).encode()
    return path.read_bytes()


def traces(desk: Desk, code: str) -> list[str]:
    """Every file of the home, the Prefect server's database included, in which a code is found."""
    found = []
    for path in sorted(desk.settings.home.rglob("*")):
        small = path.is_file() and not path.is_symlink() and path.stat().st_size < 1 << 28
        bundles = desk.settings.home / "bundles"
        if small and bundles not in path.parents and code.encode() in content(path):
            found.append(str(path))
    return found


@pytest.mark.slow
def test_two_approvers_by_command_line_let_the_canary_begin(
    desk: Desk, approvers: None, traffic: LoadGenerator
) -> None:
    proposed = desk.propose(0.8, approval="required", approvals_required=2)
    release_id = proposed.release_id
    ended = desk.run_flow("release", {"release_id": release_id})
    assert ended["name"] == "Awaiting approval"  # nobody's run is blocked where none can wait
    desk.run_flow("watch", {})
    run_id = desk.wait_asked(proposed)

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


@pytest.mark.slow
def test_an_approval_given_while_prefect_is_away_is_kept_and_honoured_later(
    desk: Desk, approvers: None, traffic: LoadGenerator
) -> None:
    proposed = desk.propose(0.8, approval="required", requester_excluded=True)
    release_id, run_id = proposed.release_id, desk.ask(proposed)
    away = {**desk.environment, "SERIN_PREFECT_URL": "http://127.0.0.1:9/api"}
    said = answer(desk, "approve", release_id, "Grace", CODES["Grace"], away)
    assert "1 of 1 approvals" in said.stdout, said.stderr
    assert "the watch goes on with it once Prefect is there" in said.stdout
    assert desk.state(release_id) is ReleaseState.AWAITING_APPROVAL
    desk.run_flow("watch", {})
    desk.wait(lambda: desk.state(release_id) is ReleaseState.PROMOTED, "the promotion")
    assert [run["id"] for run in desk.runs(release_id)] == [run_id]
    assert traffic.stop().failed == 0


def form_of(desk: Desk, browser: "webdriver.Chrome", run_id: str) -> "Page":
    from approval_page import Page

    address = desk.settings.prefect_url.removesuffix("/api")
    return Page(browser, f"{address}/runs/flow-run/{run_id}")


@needs_browser
def test_a_form_shows_the_evidence_and_lets_the_canary_begin(
    desk: Desk, approvers: None, browser: "webdriver.Chrome", traffic: LoadGenerator
) -> None:
    proposed = desk.propose(0.8765, approval="required")
    release_id, run_id = proposed.release_id, desk.ask(proposed)
    page = form_of(desk, browser, run_id)
    shown = page.open_form()
    for text in ("Approvals: 0 of 1", "better than stable", "0.876", "billing", "Drift report"):
        assert text in shown
    links = page.links()
    assert "no drift at all" in httpx.get(links["Drift report"], timeout=30).text
    assert httpx.get(links["MLflow run"], timeout=30).status_code == 200

    page.submit()  # empty
    assert page.wait_text("'approver' is a required property")
    assert "'decision' is a required property" in page.text
    page.fill(approver="Ada", decision="approve", code="not-the-code-of-ada", note="a guess")
    page.submit()
    page.wait_closed()
    desk.wait(lambda: "answer_refused" in desk.kinds(release_id), "the refusal")
    desk.wait(lambda: desk.suspended(release_id), "the run to ask again")
    assert desk.state(release_id) is ReleaseState.AWAITING_APPROVAL

    page = form_of(desk, browser, run_id)
    assert "An answer was not taken: name or code is wrong" in page.open_form()
    page.fill(approver="Ada", decision="approve", code=CODES["Ada"], note="the figures hold")
    page.submit()
    page.wait_closed()
    desk.wait(lambda: "started" in desk.kinds(release_id), "the canary to begin")
    page.wait_text("Running", "Promoted")
    desk.wait(lambda: desk.state(release_id) is ReleaseState.PROMOTED, "the promotion")
    (given,) = desk.ledger.release(release_id).approvals
    assert (given.who, given.note, given.self_declared) == ("Ada", "the figures hold", False)
    assert traffic.stop().failed == 0
    for code in (CODES["Ada"], "not-the-code-of-ada"):
        assert traces(desk, code) == []


@pytest.mark.slow
@needs_browser
def test_a_form_rejects(desk: Desk, approvers: None, browser: "webdriver.Chrome") -> None:
    proposed = desk.propose(0.8, approval="required", approvals_required=2)
    release_id, run_id = proposed.release_id, desk.ask(proposed)
    page = form_of(desk, browser, run_id)
    assert "Asked for by Linus, who may not approve it" in page.open_form()
    page.fill(approver="Grace", decision="reject", code=CODES["Grace"], note="not today")
    page.submit()
    page.wait_closed()
    desk.wait(lambda: desk.state(release_id) is ReleaseState.REJECTED, "the rejection")
    assert desk.ledger.release(release_id).reason == "rejected by Grace: not today"
    page.wait_text("Rejected")
    assert "started" not in desk.kinds(release_id)
    assert traces(desk, CODES["Grace"]) == []
