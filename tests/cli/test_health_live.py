"""`serin health --watch` on a terminal: it shows each look, and Ctrl-C ends it."""

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

from core.settings import Settings
from rollout.ledger import Ledger
from tasks.remembering import Notes, Remembered
from tests.running_stack import ROOT, isolated_environment
from validation.health import Reading, RowState
from validation.health_config import HealthConfig

SECONDS_MAX = 60.0


def looked(settings: Settings, used: float) -> None:
    """Let the watch have found this share of the disk in use."""
    config = HealthConfig()
    ledger = Ledger(settings.ledger_url)
    readings = {"disk_used_share": Reading(used)}
    state = {"disk": RowState(active=used > 0.9, attempts=1)}
    found = Remembered(time.time(), state, readings, config=config.model_dump(mode="json"))
    Notes(ledger, settings.namespace, settings.service).keep(found)
    ledger.close()


def read_until(terminal: int, text: str, seen: str = "") -> str:
    """Read what is shown until it contains a text, without its colours."""
    deadline = time.monotonic() + SECONDS_MAX
    while text not in seen:
        assert time.monotonic() < deadline, f"{text!r} was not shown: {seen[-2000:]!r}"
        if select.select([terminal], [], [], 0.5)[0]:
            raw = os.read(terminal, 65536).decode(errors="replace")
            seen += re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", raw)
    return seen


def test_it_shows_each_look_until_ctrl_c(tmp_path: Path) -> None:
    environment = {**isolated_environment(tmp_path), "COLUMNS": "160", "TERM": "xterm"}
    settings = Settings.read(environment)
    looked(settings, 0.5)
    terminal, child = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "cli.main", "health", "--watch"],
        cwd=ROOT, env=environment, stdin=child, stdout=child, stderr=child,
        start_new_session=True,
    )  # fmt: skip
    os.close(child)
    try:
        assert "acting" not in read_until(terminal, "disk_used_share 0.5 of 0.9")
        looked(settings, 0.95)
        seen = read_until(terminal, "disk_used_share 0.95 of 0.9")
        assert "acting" in read_until(terminal, "1 tries", seen)
        process.send_signal(signal.SIGINT)
        assert process.wait(SECONDS_MAX) == 0
    finally:
        process.kill()
        process.wait()
        os.close(terminal)
