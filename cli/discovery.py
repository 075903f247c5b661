"""Where the home's predictors listen, from the file in which the control plane lists them."""

from pathlib import Path
from typing import Any

import msgspec

from cli.ports import LOOPBACK


def targets(home: Path) -> list[dict[str, Any]]:
    """Return the predictors that listen, as Prometheus' HTTP service discovery wants them."""
    try:
        listed = msgspec.json.decode((home / "control" / "processes.json").read_bytes())
    except (OSError, msgspec.DecodeError):
        return []
    return [
        {
            "targets": [f"{LOOPBACK}:{entry['port']}"],
            "labels": {"service": entry["service"], "revision": entry["revision"]},
        }
        for entry in listed.get("processes", [])
        if entry.get("port")
    ]
