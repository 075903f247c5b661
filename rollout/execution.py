"""Carries out one action of a held release: intent, then action, then record.

Every write to the ledger here is refused once the release has a higher epoch.
"""

import logging
from collections.abc import Mapping
from typing import Any

from core.contracts import CanaryDecision, ReleaseState
from core.errors import ConflictError, NotFoundError, RefusedError
from rollout.events import NOTHING
from rollout.inference_service import InferenceServices, ServiceFacts
from rollout.ledger import Ledger
from rollout.moves import MoveAction, plan_move, send
from rollout.observer import Observer, serving_shares
from rollout.release import Release
from rollout.steps import (
    AskApproval,
    Begin,
    FinishPromoted,
    FinishRolledBack,
    Reject,
    Return,
    RollBack,
    Wait,
    next_action,
)
from rollout.times import to_seconds
from rollout.writer import Writer

log = logging.getLogger("serin.rollout")


def rolling_back(release: Release, reason: str, now: str) -> dict[str, Any]:
    """The changes that turn a canary into a rollback to the state before; none if it is one."""
    if release.state is ReleaseState.ROLLING_BACK:
        return {}
    return {
        "state": ReleaseState.ROLLING_BACK,
        "goal": release.before,
        "reason": reason,
        "patched_at": now,
        "rolling_back_at": now,
    }


class Execution:
    """Steps of held releases. Raises FencedError when the release was taken over, ConflictError
    when the service or the release was written meanwhile: observe again and decide anew."""

    def __init__(self, ledger: Ledger, client: InferenceServices, observer: Observer) -> None:
        self._ledger = ledger
        self._client = client
        self._observer = observer

    def step(self, release: Release, decision: CanaryDecision | None) -> tuple[Release, bool]:
        """Do what is next; the second value says whether the call that asked may return."""
        release, facts = self._observer.observe(release)
        now = to_seconds(self._ledger.now)
        action = next_action(release, facts, decision, now, release.plan)
        match action:
            case Wait(reason, alarm):
                return self._wait(release, reason, alarm), True
            case RollBack(reason):
                return self._roll_back(release, reason, decision), False
            case Return(reason):
                return self._return(release, reason), False
            case FinishPromoted() | FinishRolledBack() | Reject():
                return self._finish(release, facts, action), True
            case AskApproval() | Begin():
                raise RefusedError(f"release {release.release_id} is {release.state}: not begun")
            case _:
                return self._move(release, facts, action, decision)

    def _move(
        self,
        release: Release,
        facts: ServiceFacts,
        action: MoveAction,
        decision: CanaryDecision | None,
    ) -> tuple[Release, bool]:
        move = plan_move(action, release, facts, decision)
        name = move.pending.action
        body = {
            "action": name,
            "percent": move.pending.percent,
            "bundle_digest": move.pending.bundle_digest,
            "resource_version": facts.resource_version,
            "decision": decision,
        }
        changes = {**move.changes, "pending": move.pending, "patched_at": self._ledger.now}
        # The resourceVersion was read before this compare-and-swap on the epoch: a process that
        # is stopped after it and wakes up when the release was taken over patches in vain.
        release = self._change(release, "intent", body, changes)
        try:
            answer = send(self._client, release, facts, move)
        except (ConflictError, NotFoundError) as error:
            self._change(
                release, "conflict", {"action": name, "why": str(error)}, {"pending": None}
            )
            raise ConflictError(str(error)) from error
        except RefusedError as error:
            return self._refused(release, name, str(error))
        log.info("%s %s", release.release_id, _sentence(move.pending.action, move.pending.percent))
        version = answer.get("metadata", {}).get("resourceVersion", "")
        body = {"action": name, "resource_version": version}
        done = {"pending": None, "applied_share": release.share}
        return self._change(release, "applied", body, done), True

    def _refused(self, release: Release, action: str, why: str) -> tuple[Release, bool]:
        """What the control plane denies will not get better by asking again."""
        body = {"action": action, "why": why}
        release = self._change(release, "refused", body, {"pending": None})
        if release.state is ReleaseState.CANARY:
            return self._roll_back(release, why, None), False
        return self._wait(release, f"{action}: {why}", alarm=True), True

    def _wait(self, release: Release, reason: str, alarm: bool) -> Release:
        if not alarm or reason in release.alarms:
            return release
        log.warning("%s alarm: %s", release.release_id, reason)
        alarms = (*release.alarms, reason)
        return self._change(release, "alarm", {"reason": reason}, {"alarms": alarms})

    def _roll_back(self, release: Release, reason: str, decision: CanaryDecision | None) -> Release:
        log.warning("%s rolling back: %s", release.release_id, reason)
        body = {"reason": reason, "decision": decision}
        changes = rolling_back(release, reason, self._ledger.now)
        return self._change(release, "rolling_back", body, changes)

    def _return(self, release: Release, reason: str) -> Release:
        log.warning("%s returning: %s", release.release_id, reason)
        changes = {
            "goal": release.before,
            "reason": f"{release.reason}; {reason}",
            "patched_at": self._ledger.now,
        }
        return self._change(release, "returning", {"reason": reason}, changes)

    def _finish(
        self,
        release: Release,
        facts: ServiceFacts,
        action: FinishPromoted | FinishRolledBack | Reject,
    ) -> Release:
        """End the release; after a rollback the state must be what it was, or there is an alarm."""
        after = self._observer.state(release.namespace, release.service, facts)
        match action:
            case FinishPromoted():
                state, goal = ReleaseState.PROMOTED, after
            case FinishRolledBack():
                state, goal = ReleaseState.ROLLED_BACK, release.goal
            case Reject():
                state, goal = ReleaseState.REJECTED, release.goal
        differences: tuple[str, ...] = ()
        if goal is None or after is None:
            differences = () if goal == after else ("exists",)
        else:
            differences = goal.differences(after)
        body = {
            "reason": release.reason,
            "after": after,
            "goal_digest": goal.digest if goal else None,
            "after_digest": after.digest if after else None,
            "differences": differences,
        }
        changes: dict[str, Any] = {
            "state": state,
            "after": after,
            "finished_at": self._ledger.now,
        }
        alarm = f"the service is not as it was: {', '.join(differences)}" if differences else ""

        def work(writer: Writer) -> Release:
            ended = release
            if alarm:
                given = {"reason": alarm, "goal": goal, "after": after}
                ended = writer.change(ended, "alarm", given, alarms=(*release.alarms, alarm))
            shares = serving_shares(facts) or (NOTHING,)
            return writer.change(ended, state.lower(), body, shares, **changes)

        ended = self._ledger.write(work)
        log.info("%s %s %s", release.release_id, state, alarm or release.reason)
        return ended

    def _change(
        self, release: Release, event: str, body: Mapping[str, Any], changes: Mapping[str, Any]
    ) -> Release:
        return self._ledger.write(lambda writer: writer.change(release, event, body, **changes))


def _sentence(action: str, percent: int | None) -> str:
    return f"{action}: canary percent {'removed' if percent is None else percent}"
