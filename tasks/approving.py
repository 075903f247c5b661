"""A person's answer to a release: the form that Prefect shows, what is read from it, and the runs
that wait for it. The ledger is the truth; a run only waits, and may be woken at any time."""

import json
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from typing import Any, Literal
from uuid import UUID, uuid4

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterName
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.responses import SetStateStatus
from prefect.client.schemas.sorting import FlowRunSort
from prefect.context import FlowRunContext
from prefect.deployments import run_deployment
from prefect.flow_runs import suspend_flow_run
from prefect.input import RunInput
from prefect.settings import PREFECT_API_URL
from prefect.states import Scheduled
from pydantic import Field, SecretStr, ValidationError

from core.contracts import ReleaseState
from core.errors import NotFoundError, RefusedError, SerinError, UnavailableError
from core.settings import Settings
from rollout.answers import Answer, record_answer
from rollout.approvers import Approvers
from rollout.release import Release
from rollout.times import to_seconds
from tasks.releasing import begin_release, open_conductor
from tasks.stages import LOG, DayRun

RELEASE_DEPLOYMENT = "release/release"
KEY_PREFIX, RESPONSE = "suspended-", "-response"
DIGEST_LENGTH = 64
MARGIN_SECONDS = 120
"""Prefect's own time-out comes this long after the ledger's: the keeper is the one that rejects."""
LIVING_SECONDS_MAX = 900.0
"""A run that neither waits nor ended and says nothing for this long is taken for dead."""
RUNS_MAX = 100
ANSWERS_MAX = 20
ERASE_TRIES = 20
ERASE_PAUSE_SECONDS = 0.1


class ApprovalForm(RunInput):
    """What the Prefect UI asks; neither name nor decision has a default, so none can be missed."""

    approver: str = Field(min_length=1, max_length=64, description="your name, as configured")
    decision: Literal["approve", "reject"] = Field(description="of exactly what is shown above")
    code: SecretStr = Field(
        default=SecretStr(""),
        description="your personal code; leave it empty only where no approvers are configured",
    )
    note: str = Field(default="", max_length=1000, description="kept in the ledger; never a code")


def may_ask(release: Release) -> bool:
    """Whether the release waits for people, and this run is one that can wait for them.

    Only a deployment's own run can be suspended; a release inside another flow ends instead, and
    the watch starts the release's deployment.
    """
    context = FlowRunContext.get()
    run = context.flow_run if context else None
    alone = run is not None and run.deployment_id is not None and run.parent_task_run_id is None
    return alone and release.state is ReleaseState.AWAITING_APPROVAL


def hear_answer(run: DayRun, release: Release) -> Release:
    """Take what was answered; where people are still to be asked, suspend this run and ask them.

    Suspended, the process ends; resumed by a form, by `serin approve` or by the watch, the flow
    begins anew and comes here again. So what happened is read from the ledger, never remembered.
    """
    from tasks.evidence import evidence_page

    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        raise RefusedError("a form is shown by a flow's run; nobody runs one here")
    heard = take_answers(release, context.flow_run.id)
    current = begin_release(run, release.release_id) if heard else release
    if may_ask(current):
        LOG.info("%s  awaits approval", current.release_id)
        page = evidence_page(current, tuple(filter(None, heard)))
        suspend_flow_run(
            wait_for_input=ApprovalForm.with_initial_data(description=page),
            timeout=_seconds_left(current),
            key=f"{current.candidate.verdict_digest[:DIGEST_LENGTH]}-{uuid4().hex}",
        )
    return current


def take_answers(release: Release, flow_run_id: UUID) -> tuple[str, ...]:
    """Write every submitted form into the ledger and delete it, code and all, from Prefect.

    Returns for each of them why it was not taken, "" where it was.
    """
    settings, ledger = Settings.read(), open_conductor().ledger
    approvers = Approvers(settings.approvers_file)
    heard = []
    with _client() as client:
        found = client.filter_flow_run_input(flow_run_id, KEY_PREFIX, ANSWERS_MAX, set())
        for item in found:
            if not item.key.endswith(RESPONSE):
                continue
            try:
                record_answer(ledger, approvers, _read(release, item.key, item.value))
                heard.append("")
            except (RefusedError, NotFoundError) as error:
                LOG.warning("%s  answer not taken: %s", release.release_id, error)
                heard.append(str(error))
            finally:
                client.delete_flow_run_input(flow_run_id, item.key)
                _erase(settings)
    return tuple(heard)


def resume_runs(release_id: str) -> int:
    """Resume the release's suspended runs without a form; return how many.

    Raises UnavailableError when Prefect does not answer: the watch does it later.
    """
    with _client() as client:
        paused = [run for run in _runs(client, release_id) if run.state and run.state.is_paused()]
        return sum(_resumed(client, run) for run in paused)


def continue_release(release: Release) -> None:
    """See to it that a run goes on with the release: resume the one that waits, or start one.

    While people still have to answer, a run that waits for them is left alone.
    """
    with _client() as client:
        runs = _runs(client, release.release_id)
        paused = [run for run in runs if run.state and run.state.is_paused()]
        waits = release.state is ReleaseState.AWAITING_APPROVAL and not release.approved
        if paused and not waits:
            for run in paused:
                _resumed(client, run)
        if paused or any(_lives(run) for run in runs):
            return
    run_deployment(
        RELEASE_DEPLOYMENT,
        parameters={"release_id": release.release_id},
        timeout=0,
        # Asked twice, it runs once; after a run that died there is another key.
        idempotency_key=f"release-{release.release_id}-{len(runs)}",
        as_subflow=False,
    )


def _read(release: Release, key: str, value: str) -> Answer:
    """A form as an answer to what was shown with it: the key begins with the verdict's digest."""
    try:
        form = ApprovalForm.model_validate(json.loads(value))
    except ValidationError:
        raise RefusedError("the form was malformed; answer again") from None  # it holds the code
    seen = key.removeprefix(KEY_PREFIX).removesuffix(RESPONSE).rpartition("-")[0]
    return Answer(
        release_id=release.release_id,
        who=form.approver,
        approves=form.decision == "approve",
        note=form.note,
        code=form.code.get_secret_value(),
        seen_digest=seen,
    )


def _seconds_left(release: Release) -> int:
    asked = to_seconds(release.asked_at) if release.asked_at else time.time()
    left = asked + release.plan.approval_timeout_seconds - time.time()
    return int(max(left, 0)) + MARGIN_SECONDS


def _erase(settings: Settings) -> None:
    """Move the deletion out of the write-ahead log of our own Prefect server's database.

    SQLite overwrites what is deleted (secure_delete, as Debian and Ubuntu build it), but the log
    keeps earlier pages until it is truncated.
    """
    path = settings.home / "prefect" / "prefect.db"
    if not path.exists():
        return
    try:
        with closing(sqlite3.connect(path, timeout=5)) as connection:
            for _ in range(ERASE_TRIES):
                if connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0:
                    return
                time.sleep(ERASE_PAUSE_SECONDS)
    except sqlite3.Error as error:
        LOG.warning("Prefect's write-ahead log was not truncated: %s", error)
    else:
        LOG.warning("Prefect's write-ahead log was not truncated: the database is busy")


def _runs(client: SyncPrefectClient, release_id: str) -> list[FlowRun]:
    """The release's runs, newest first."""
    name = RELEASE_DEPLOYMENT.partition("/")[2]
    found = client.read_flow_runs(
        deployment_filter=DeploymentFilter(name=DeploymentFilterName(any_=[name])),
        sort=FlowRunSort.EXPECTED_START_TIME_DESC,
        limit=RUNS_MAX,
    )
    return [run for run in found if run.parameters.get("release_id") == release_id]


def _lives(run: FlowRun) -> bool:
    state = run.state
    if state is None or state.is_final():
        return False
    if state.is_scheduled() or state.is_pending():
        return True
    quiet: float = time.time() - state.timestamp.timestamp()
    return quiet < LIVING_SECONDS_MAX


def _resumed(client: SyncPrefectClient, run: FlowRun) -> bool:
    state: Any = Scheduled(name="Resuming", scheduled_time=datetime.now(UTC))
    answered: Any = client.set_flow_run_state(run.id, state).status
    accepted: bool = answered == SetStateStatus.ACCEPT
    return accepted


@contextmanager
def _client() -> Iterator[SyncPrefectClient]:
    """Prefect's API. Raises UnavailableError when it does not answer."""
    import httpx

    if not (Settings.read().prefect_url or PREFECT_API_URL.value()):
        raise UnavailableError("no Prefect server is known; `serin up` starts one")
    try:
        with get_client(sync_client=True) as client:
            yield client
    except SerinError:
        raise
    except (httpx.HTTPError, RuntimeError) as error:
        raise UnavailableError(f"Prefect does not answer: {error}") from error
