"""A person's answer to a release, checked in one place and written to the ledger once.

Form and command line both come here. Codes are compared and forgotten: never stored, never logged.
"""

from dataclasses import dataclass, field

from core.errors import ConfigurationError, RefusedError
from rollout import proposals
from rollout.approvers import Approvers
from rollout.ledger import Ledger
from rollout.plan import ReleasePlan
from rollout.release import Release
from rollout.times import to_seconds
from rollout.writer import Writer

REFUSED_EVENT = "answer_refused"
REFUSED_MAX = 5
"""Wrong codes for one name, or for names that nobody has, within the window; then a pause."""
REFUSED_SECONDS = 900.0
NOTE_LENGTH_MAX = 1000
UNKNOWN = "unknown name"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a person says. `seen_digest` is the verdict's (or candidate's) that they were shown."""

    release_id: str
    who: str
    approves: bool
    note: str = ""
    code: str = field(default="", repr=False)
    seen_digest: str | None = None


def check_policy(plan: ReleasePlan, approvers: Approvers) -> None:
    """Raise ConfigurationError when the plan asks for proven names and too few are configured."""
    names = approvers.names()
    least = plan.approvals_required
    if plan.needs_approvers and len(names) < least:
        raise ConfigurationError(
            f"the release's plan needs {least} approver(s) with codes, {len(names)} are "
            f"configured in {approvers.path}: `serin approver add NAME`"
        )


def record_answer(ledger: Ledger, approvers: Approvers, answer: Answer) -> Release:
    """Check who answers, and write the approval or rejection; return the release after it.

    With approvers configured the code must be theirs: a wrong one is an event without the code,
    and RefusedError. Without any the name is recorded as self-declared. Raises what
    proposals.approve and proposals.reject raise.
    """
    if not answer.who.strip():
        raise RefusedError("an answer needs a name")
    note = answer.note.strip()[:NOTE_LENGTH_MAX]
    if answer.code and (answer.code in note or answer.code in answer.who):
        raise RefusedError("the code stands in the name or note as well; answer again without it")
    release = ledger.release(answer.release_id)
    if not approvers.names():
        return _write(ledger, answer, answer.who.strip(), note, self_declared=True)
    known = {name.casefold(): name for name in approvers.names()}
    # What is no configured name may be a code in the wrong field: it is not recorded.
    recorded = known.get(answer.who.strip().casefold(), UNKNOWN)
    if (left := _pause_seconds(ledger, release, recorded)) > 0:
        raise RefusedError(f"too many wrong codes for {recorded}; try again in {left:.0f} s")
    proven = approvers.proven(answer.who, answer.code)
    if proven is None:
        _refuse(ledger, release, recorded)
        raise RefusedError("name or code is wrong; nothing was decided")
    return _write(ledger, answer, proven, note, self_declared=False)


def _write(ledger: Ledger, answer: Answer, who: str, note: str, self_declared: bool) -> Release:
    def work(writer: Writer) -> Release:
        release = writer.release(answer.release_id)
        if answer.approves:
            seen = answer.seen_digest
            return proposals.approve(writer, release, who, note, seen, self_declared)
        return proposals.reject(writer, release, who, note, self_declared)

    return ledger.write(work)


def _refuse(ledger: Ledger, release: Release, who: str) -> None:
    body = {"who": who, "why": "name or code is wrong"}

    def work(writer: Writer) -> None:
        current = writer.release(release.release_id)
        if current.state in proposals.UNSTARTED:  # nobody else's writes are disturbed
            writer.change(current, REFUSED_EVENT, body)

    ledger.write(work)


def _pause_seconds(ledger: Ledger, release: Release, who: str) -> float:
    """Seconds until this name may be tried again; 0 when it may be now."""
    now = to_seconds(ledger.now)
    times = [
        to_seconds(event.time)
        for event in ledger.last_events(100, release.release_id)
        if event.kind == REFUSED_EVENT and event.body.get("who") == who
    ]
    recent = [time for time in times if now - time < REFUSED_SECONDS]
    if len(recent) < REFUSED_MAX:
        return 0.0
    return max(REFUSED_SECONDS - (now - recent[-REFUSED_MAX]), 1.0)
