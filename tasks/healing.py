"""The health matrix at work: look, decide, write down why, act, write down what came of it.

Releases go first: what would change the service waits for them (validation/health.py).
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from core.errors import SerinError
from core.settings import Settings
from rollout.ledger import Ledger
from rollout.release import HELD_STATES
from tasks.measuring import live_readings, read_pages, take_look
from tasks.rare_readings import rare_readings
from tasks.recoveries import Case, Recoveries
from tasks.remembering import ALL_ROWS, Held, Notes, Override, Remembered, forgotten
from tasks.stages import LOG
from validation.health import Reading, RowState, Step, decide, stricter
from validation.health_config import HealthConfig, Mode, Recovery, Row
from validation.health_figures import COUNTED, counted_readings

HOLDER = "watch"
CARRIED_OUT = ("act", "escalate", "undo")


@dataclass(frozen=True, slots=True)
class Decided:
    """One row after its decision."""

    case: Case
    mode: Mode
    steps: tuple[Step, ...]


@task(name="heal", retries=0, cache_policy=NO_CACHE)
def heal(config: HealthConfig) -> str:
    """Judge every row once, and do what follows; returns what is wrong, for people."""
    settings = Settings.read()
    ledger = Ledger(settings.ledger_url)
    try:
        return heal_once(settings, config, ledger, time.time())
    finally:
        ledger.close()


def heal_once(settings: Settings, config: HealthConfig, ledger: Ledger, now: float) -> str:
    """Judge and act as of `now`. Raises UnavailableError when the ledger does not answer."""
    notes = Notes(ledger, settings.namespace, settings.service)
    remembered = measured(settings, config, ledger, notes.read(), now)
    active = ledger.active(settings.service, settings.namespace)
    release_runs = active is not None and active.state in HELD_STATES
    overrides = notes.overrides(now)
    decided = [
        _decided(name, row, config, remembered, overrides, now, release_runs)
        for name, row in config.rows.items()
    ]
    carried = _Carrying(settings, config, ledger, remembered)
    for one in decided:
        carried.record(one)
    states = {one.case.name: one.case.state for one in decided}
    # Remembered before anything is touched: who dies now finds it unconfirmed and does it again.
    notes.keep(replace(remembered, states=states))
    for one in decided:
        states[one.case.name] = carried.carry_out(one, now)
    carried.set_switches([replace(d.case, state=states[d.case.name]) for d in decided])
    notes.keep(replace(remembered, states=states, held=carried.held, errors=carried.errors))
    return _summary(decided, states)


def measured(
    settings: Settings, config: HealthConfig, ledger: Ledger, before: Remembered, now: float
) -> Remembered:
    """Take all readings of a moment and remember them."""
    pages = read_pages(settings)
    windows = [
        row.window_seconds
        for row in config.rows.values()
        if any(condition.metric in COUNTED for condition in row.conditions)
    ]
    looks = (*before.looks, take_look(pages, settings.service, now))
    found = forgotten(
        replace(before, looks=looks), now - max(windows, default=0), config.samples_max
    )
    found = rare_readings(settings, config, ledger, pages, found, now)
    readings = {
        **found.rare,
        **live_readings(settings, config, pages, now),
        **counted_readings(config, found.looks),
    }
    return replace(
        found, time_seconds=now, readings=readings, config=config.model_dump(mode="json")
    )


def _decided(
    name: str,
    row: Row,
    config: HealthConfig,
    remembered: Remembered,
    overrides: dict[str, Override],
    now: float,
    release_runs: bool,
) -> Decided:
    said = [overrides[key].mode for key in (ALL_ROWS, name) if key in overrides]
    mode = stricter([row.mode, "dry_run" if config.dry_run else "act", *said])
    state = remembered.states.get(name, RowState())
    state, steps = decide(row, state, remembered.readings, now, mode, release_runs)
    return Decided(Case(name, row, state, remembered.readings), mode, steps)


class _Carrying:
    """Writes steps into the ledger and carries them out."""

    def __init__(
        self, settings: Settings, config: HealthConfig, ledger: Ledger, remembered: Remembered
    ) -> None:
        self._settings = settings
        self._ledger = ledger
        self._recoveries = Recoveries(settings, config, ledger)
        self.held: Held = remembered.held
        self.errors: dict[str, str] = dict(remembered.errors)

    def record(self, decided: Decided) -> None:
        """Write down what was decided and from which figures, before it is done."""
        case = decided.case
        for step in decided.steps:
            body = {
                "row": case.name,
                "recovery": _recovery(case.row, case.state),
                "reason": step.reason,
                "attempt": step.attempt,
                "dry_run": step.dry,
                "readings": {
                    condition.metric: _shown(case.readings.get(condition.metric, Reading()))
                    for condition in case.row.conditions
                },
                "conditions": [condition.model_dump() for condition in case.row.conditions],
            }
            self._write(f"health_{step.kind}", body)
            LOG.warning("health %s  %s  %s", case.name, step.kind, step.reason)

    def carry_out(self, decided: Decided, now: float) -> RowState:
        """Do what is in force and not confirmed; return the state after it."""
        case, state = decided.case, decided.case.state
        if state.confirmed or state.dry or decided.mode != "act":
            return state
        recovery = _recovery(case.row, state)
        try:
            if state.active:
                done = self._recoveries.act(recovery, case, self.held)
            else:
                done = self._recoveries.undo(case.row.recovery, self.held)
        except SerinError as error:
            self._failed(case.name, recovery, str(error))
            late = now - (state.acted_at or now) >= case.row.verify_seconds
            return replace(state, confirmed=True) if state.active and late else state
        self.held = done.held
        self.errors.pop(case.name, None)
        if done.changed:
            self._write("health_done", {"row": case.name, "recovery": recovery, **done.changed})
        return replace(state, confirmed=True)

    def set_switches(self, cases: list[Case]) -> None:
        """Set and reset the gateway's switches."""
        try:
            done = self._recoveries.switches(cases, self.held)
        except SerinError as error:
            self._failed("gateway", "switch", str(error))
            return
        self.errors.pop("gateway", None)
        self.held = done.held
        if done.changed:
            self._write("health_switched", done.changed)

    def _failed(self, row: str, recovery: str, error: str) -> None:
        if self.errors.get(row) != error:
            self._write("health_failed", {"row": row, "recovery": recovery, "error": error})
        self.errors[row] = error
        LOG.warning("health %s  %s failed: %s", row, recovery, error)

    def _write(self, event: str, body: dict[str, Any]) -> None:
        names = (self._settings.namespace, self._settings.service)
        self._ledger.write(lambda writer: writer.record(*names, event, HOLDER, body))


def _recovery(row: Row, state: RowState) -> Recovery:
    return row.escalation if state.escalated else row.recovery


def _shown(reading: Reading) -> dict[str, Any]:
    return {"value": reading.value, "why": reading.why, "detail": dict(reading.detail)}


def _summary(decided: Sequence[Decided], states: dict[str, RowState]) -> str:
    wrong = []
    for one in decided:
        state = states[one.case.name]
        if state.active:
            words = "escalated" if state.escalated else "acting"
            wrong.append(f"{one.case.name} {'would act' if state.dry else words}")
        elif state.no_data:
            wrong.append(f"{one.case.name} unknown")
    return f"health {', '.join(wrong) if wrong else 'ok'}"
