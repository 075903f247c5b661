"""Logs: JSON lines with trace ids for programs, short lines for people on a terminal."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

from observability.logs import message_of
from tests.running_stack import ROOT

PROGRAM = """
import logging
from core.telemetry import TelemetrySettings
from observability.logs import configure
from observability.tracing import Tracing

configure("test")
log = logging.getLogger("serin.test")
tracing = Tracing(
    TelemetrySettings.read(), "test", "test", trusting=False
)
tracing._load()
log.info("before %s", "a request")
trace = tracing.begin("x", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", 0.0)
try:
    1 / 0
except ZeroDivisionError:
    log.exception("within\\none")
trace.end()
"""
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": str(ROOT),
    "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9",
    "OTEL_TRACES_SAMPLER": "always_on",
}


def test_in_a_file_each_line_is_an_object_with_the_ids_of_its_trace(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as file:
        command = [sys.executable, "-c", PROGRAM]
        subprocess.run(command, stderr=file, check=True, env=ENVIRONMENT, timeout=60)
    first, second = map(json.loads, (tmp_path / "log").read_text().splitlines())
    assert first["message"] == "before a request"
    assert (first["process"], first["logger"], first["level"]) == ("test", "serin.test", "info")
    assert first["time"].endswith("Z")
    assert "trace_id" not in first
    assert second["message"] == "within\none"
    assert second["error"] == "ZeroDivisionError"
    assert "1 / 0" in second["stack"] or "division by zero" in second["stack"]
    assert second["trace_id"] == "4bf92f3577b34da6a3ce929d0e0e4736"
    assert len(second["span_id"]) == 16


def test_on_a_terminal_lines_are_for_people() -> None:
    reading, writing = pty.openpty()
    command = [sys.executable, "-c", PROGRAM]
    subprocess.run(command, stderr=writing, check=True, env=ENVIRONMENT, timeout=60)
    shown = os.read(reading, 65536).decode()
    os.close(writing)
    os.close(reading)
    assert "INFO serin.test: before a request" in shown
    assert "{" not in shown.splitlines()[0]


def test_a_line_says_its_message() -> None:
    assert message_of('{"message": "port taken", "level": "error"}') == "port taken"
    assert message_of('{"message": "cut of') == '{"message": "cut of'
    assert message_of("plain") == "plain"
