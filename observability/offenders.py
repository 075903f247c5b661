"""Who lately did what is malicious, counted from the gateways' audits: all processes together."""

import time
from collections import Counter
from pathlib import Path

import msgspec

from observability.audit_rows import LINES, ROWS

TAIL_BYTES = 2 << 20
FAILED_AUTHENTICATION = 401
MANY = "many"


def strikes(folder: Path, seconds: float, now: float | None = None) -> Counter[str]:
    """Count failed authentications and blocked requests per client address since `seconds` ago.

    Reads at most the last 2 MiB of each chain that was written since then. Raises OSError.
    """
    since = (time.time() if now is None else now) - seconds
    found: Counter[str] = Counter()
    for chain in folder.glob("gateway-*"):
        segments = sorted(chain.glob("*.jsonl"))
        if segments and segments[-1].stat().st_mtime >= since:
            found += _counted(segments[-1], since)
    return found


def _counted(segment: Path, since: float) -> Counter[str]:
    with segment.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - TAIL_BYTES))
        lines = file.read().splitlines()
    found: Counter[str] = Counter()
    for line in reversed(lines):
        try:
            row = ROWS.decode(LINES.decode(line).row)
        except msgspec.MsgspecError:
            continue  # a line that is being written, or the one that the tail cuts
        if row.time_seconds < since:
            break
        malicious = row.status == FAILED_AUTHENTICATION or (row.blocked and row.status >= 400)
        if malicious and row.client not in ("", MANY):
            found[row.client] += row.count
    return found
