"""What the watch remembers between its runs: one note in the ledger's database, of bounded size.

And people's overrides, in a note of their own, so that neither writer loses the other's.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from core.errors import IntegrityError
from rollout.ledger import Ledger
from validation.health import Reading, RowState
from validation.health_config import Mode
from validation.health_figures import Look, Score

ALL_ROWS = "all"


@dataclass(frozen=True, slots=True)
class Override:
    """A person's word on a row (or all): its mode until a time, seconds since the epoch."""

    mode: Mode
    until_seconds: float
    who: str = ""


@dataclass(frozen=True, slots=True)
class Held:
    """What health has switched, each with what was before, so that it can be put back.

    `switches` are fields of the gateway's mode; `replicas` is (before, asked for).
    """

    switches: dict[str, Any] = field(default_factory=dict)
    replicas: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Drift:
    """Prompt features when the present window began, and of which gateway process."""

    since_seconds: float
    process: str
    prompts: float
    features: dict[str, dict[str, float]]


@dataclass(frozen=True, slots=True)
class Remembered:
    """Everything. `rare` holds readings that are not taken at every look, `asked_at` their times;
    `feedback` the gateway's counters of scores by version: (process, count, sum)."""

    time_seconds: float = 0.0
    states: dict[str, RowState] = field(default_factory=dict)
    readings: dict[str, Reading] = field(default_factory=dict)
    looks: tuple[Look, ...] = ()
    scores: tuple[Score, ...] = ()
    feedback: dict[str, tuple[str, float, float]] = field(default_factory=dict)
    rare: dict[str, Reading] = field(default_factory=dict)
    asked_at: dict[str, float] = field(default_factory=dict)
    probes_at: int = 0
    drift: Drift | None = None
    held: Held = field(default_factory=Held)
    errors: dict[str, str] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)


class Notes:
    """Reads and writes both notes of one service."""

    def __init__(self, ledger: Ledger, namespace: str, service: str) -> None:
        self._ledger = ledger
        self._name = f"{namespace}/{service}"

    def read(self) -> Remembered:
        """Return what was remembered last; nothing at first. Raises IntegrityError."""
        found: Remembered = self._read(f"health:{self._name}", Remembered, Remembered())
        return found

    def keep(self, remembered: Remembered) -> None:
        """Remember from now on."""
        text = msgspec.json.encode(remembered).decode()
        self._ledger.keep_note(f"health:{self._name}", text)

    def overrides(self, now: float) -> dict[str, Override]:
        """Return the overrides in force, by row or ALL_ROWS."""
        found: dict[str, Override] = self._read(f"overrides:{self._name}", dict[str, Override], {})
        return {name: one for name, one in found.items() if one.until_seconds > now}

    def override(self, row: str, override: Override | None, now: float) -> None:
        """Set or lift (None) the override of a row."""
        found = self.overrides(now)
        if override is None:
            found.pop(row, None)
        else:
            found[row] = override
        text = msgspec.json.encode(found).decode()
        self._ledger.keep_note(f"overrides:{self._name}", text)

    def _read(self, name: str, kind: Any, nothing: Any) -> Any:
        text = self._ledger.note(name)
        if text is None:
            return nothing
        try:
            return msgspec.json.decode(text, type=kind)
        except msgspec.MsgspecError as error:
            raise IntegrityError(f"the ledger's note {name} is damaged: {error}") from error


def forgotten(remembered: Remembered, oldest_seconds: float, looks_max: int) -> Remembered:
    """Return it without looks that no window needs: one older than all windows stays."""
    looks = remembered.looks[-looks_max:]
    while len(looks) > 2 and looks[1].time_seconds <= oldest_seconds:
        looks = looks[1:]
    return replace(remembered, looks=looks)
