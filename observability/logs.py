"""Logs of every process: JSON lines in a file or pipe, short lines for people on a terminal.

A line of a traced request carries its ids, so that log and trace find each other.
"""

import json
import logging
import sys
import traceback
from datetime import UTC, datetime
from typing import TextIO

from observability.tracing import current

HUMAN = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, process, logger, message, and what else is known."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        """Return one line; a message is never broken over several."""
        moment = datetime.fromtimestamp(record.created, UTC)
        content = {
            "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "process": self._process,
            "pid": record.process,
            "logger": record.name,
            "message": record.getMessage(),
        }
        trace = current()
        if trace is not None:
            content |= {"trace_id": trace.trace_id, "span_id": trace.span_id}
        if record.exc_info and record.exc_info[0] is not None:
            kind = record.exc_info[0].__name__
            text = "".join(traceback.format_exception(*record.exc_info))
            content |= {"error": kind, "stack": text}
        return json.dumps(content, ensure_ascii=False, default=str)


def message_of(line: str) -> str:
    """Return what a line of a log says to people: a JSON line's message, else the line itself."""
    if not line.startswith("{"):
        return line
    try:
        return str(json.loads(line)["message"])
    except (ValueError, KeyError):  # another program's JSON, or the cut end of a line
        return line


def configure(process: str, level: int = logging.INFO, stream: TextIO | None = None) -> None:
    """Send this process's logs to `stream` (standard error), for a program or for people to read.

    Nothing is added where a handler is there already: somebody else has decided.
    """
    stream = stream or sys.stderr
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        logging.Formatter(HUMAN, "%Y-%m-%d %H:%M:%S") if stream.isatty() else JsonLines(process)
    )
    logging.basicConfig(level=level, handlers=[handler])
