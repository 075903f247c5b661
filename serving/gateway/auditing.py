"""The gateway's part of the audit: answers it gives itself, from its cache or as a refusal.

Refusals of one kind to one client within a second are one row with a count, so that a flood of
them fills no disk; a killed gateway loses that second of counts and nothing else.
"""

import asyncio
import logging
import time
from collections.abc import Iterator

from core.digests import digest_bytes
from core.errors import UnavailableError
from observability.audit import Audit
from observability.audit_rows import AuditRow
from observability.refusal_counts import RefusalCounts
from serving.gateway.cache_store import KeptAnswer
from serving.gateway.exposition import family
from serving.gateway.keys import Caller
from serving.gateway.reply import Refusal

log = logging.getLogger(__name__)

FLUSH_SECONDS = 1.0


class GatewayAudit:
    """Writes the gateway's rows. With `required` nothing is answered that cannot be recorded."""

    def __init__(self, audit: Audit, required: bool) -> None:
        self._audit = audit
        self._required = required
        self._refused = RefusalCounts()
        self._flusher: asyncio.Task[None] | None = None
        self._missed = 0

    def start(self) -> None:
        """Write down refusals each second."""
        self._flusher = asyncio.get_running_loop().create_task(self._keep_flushing())

    async def close(self) -> None:
        """Write down what is left."""
        if self._flusher is not None:
            self._flusher.cancel()
            await asyncio.gather(self._flusher, return_exceptions=True)
        self._flush()
        await asyncio.to_thread(self._audit.close)

    def given_again(self, caller: Caller, request_id: str, body: bytes, kept: KeptAnswer) -> None:
        """Record a kept answer before it is given again. Raises Refusal (503)."""
        headers = dict(kept.headers)
        row = AuditRow(
            kind="cache_hit",
            time_seconds=time.time(),
            request_id=request_id,
            response_id=kept.response_id.decode(),
            key=caller.key,
            client=caller.address,
            model_version=headers.get(b"x-serin-model-version", b"").decode("latin-1"),
            revision=headers.get(b"x-serin-revision", b"").decode("latin-1"),
            policy=kept.policy,
            status=200,
            input_digest=digest_bytes(body),
            output_digests=(digest_bytes(kept.body),),
        )
        try:
            self._audit.append(row)
        except UnavailableError as error:
            self._missed += 1
            log.error("%s", error)
            if self._required:
                text = "the answer cannot be recorded, so it is not given; try again"
                raise Refusal(503, text, "audit_unavailable", retry_after_seconds=1) from error

    def refused(self, refusal: Refusal, key: str, client: str) -> None:
        """Count a refusal; its row is written within a second."""
        self._refused.add(refusal.status, refusal.code, key, client)

    def lines(self) -> Iterator[str]:
        """Yield what was recorded, in Prometheus' text format."""
        name, text = "serin_gateway_audit_rows_total", "Rows of the audit."
        yield from family(name, "counter", text, [("", self._audit.rows)])
        name, text = "serin_gateway_audit_missed_total", "Answers and refusals without a row."
        yield from family(name, "counter", text, [("", self._missed)])

    async def _keep_flushing(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_SECONDS)
            self._flush()

    def _flush(self) -> None:
        for row in self._refused.take():
            try:
                self._audit.append(row)
            except UnavailableError as error:
                self._missed += row.count
                log.error("%s", error)
