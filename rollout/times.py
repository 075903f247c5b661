"""Times as the ledger writes them: UTC, ISO 8601, microseconds; text order is time order."""

from datetime import UTC, datetime

from core.errors import InputError


def to_iso(seconds: float) -> str:
    """Return seconds since the epoch as `2026-11-22T16:10:00.000000Z`."""
    moment = datetime.fromtimestamp(seconds, UTC)
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def to_seconds(text: str) -> float:
    """Return seconds since the epoch of an ISO 8601 time; without a zone it is UTC.

    Raises InputError when it is no such time.
    """
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise InputError(f"{text!r} is not an ISO 8601 time like 2026-11-22T16:10:00Z") from error
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
